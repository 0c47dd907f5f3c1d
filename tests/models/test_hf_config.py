"""What memory a config asks for, without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.configs import QWEN3_5_27B, QWEN3_5_27B_TEXT, parse_hf_config
from support.tiny_models import ARCHITECTURES, tiny_transformers_model

from elastikv.errors import CorruptFile, UnsupportedModel
from elastikv.memory.base import KVLayer, RecurrentLayer
from elastikv.models.config import ModelConfig
from elastikv.runtimes import find


@pytest.mark.parametrize("wrapped", [False, True])
def test_memory_of_a_real_hybrid(wrapped: bool, tmp_path: Path) -> None:
    raw = QWEN3_5_27B if wrapped else QWEN3_5_27B_TEXT
    (tmp_path / "config.json").write_text(json.dumps(raw))
    source = find(tmp_path / "config.json")
    config, layers = source.config, source.memory_layers()
    attention = [layer for layer in layers if isinstance(layer, KVLayer)]
    recurrent = [layer for layer in layers if isinstance(layer, RecurrentLayer)]
    assert layers[3] == KVLayer(n_kv_heads=4, head_dim=256, head_dim_v=256)
    assert len(attention) == 16
    assert sum(layer.n_kv_heads * (layer.head_dim + layer.head_dim_v) * 2 for layer in attention) == 64 * 1024
    assert recurrent == [RecurrentLayer(((10240, 3), (48, 128, 128)))] * 48
    assert config.rope.dim == 64
    assert config.name == tmp_path.name


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 7}, (7, 7)),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": None}, (None, None)),
        ({"architectures": ["Qwen2ForCausalLM"], "sliding_window": 7, "use_sliding_window": False}, (None, None)),
        (
            {
                "architectures": ["Qwen3ForCausalLM"],
                "sliding_window": 7,
                "use_sliding_window": True,
                "max_window_layers": 1,
            },
            (None, 7),
        ),
        (
            {
                "architectures": ["MistralForCausalLM"],
                "sliding_window": 7,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            (7, None),
        ),
    ],
)
def test_windows(changes: dict[str, Any], windows: tuple[int | None, ...], tmp_path: Path) -> None:
    raw = {
        "vocab_size": 10,
        "max_position_embeddings": 100,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        **changes,
    }
    (tmp_path / "config.json").write_text(json.dumps(raw))
    layers = find(tmp_path).memory_layers()
    assert tuple(layer.window for layer in layers if isinstance(layer, KVLayer)) == windows


SMALL: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 8, "vocab_size": 96}


def test_mistral_leaves_out_what_its_class_knows(tmp_path: Path) -> None:
    """Grouped queries and a window; neither is what a Llama would have."""
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, "architectures": ["MistralForCausalLM"]}))
    assert find(tmp_path).memory_layers() == [KVLayer(8, 8, 8, window=4096)] * 2
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, "architectures": ["Qwen2ForCausalLM"]}))
    assert find(tmp_path).memory_layers() == [KVLayer(32, 8, 8)] * 2


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_any_field_that_is_left_out_is_what_transformers_has(arch: str) -> None:
    config = tiny_transformers_model(arch).config
    whole = config.to_dict()
    for field in whole.keys() - {"model_type", "architectures", "num_hidden_layers"}:
        rest = {key: value for key, value in whole.items() if key != field}
        assert _parse(rest) == _parse(type(config).from_dict(rest).to_dict()), field


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_layout_before_transformers_5(arch: str) -> None:
    whole = tiny_transformers_model(arch).config.to_dict()
    older = {key: value for key, value in whole.items() if key != "rope_parameters"}
    scaled = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 512, "rope_theta": 5e5}
    newer = {**whole, "rope_parameters": {**whole["rope_parameters"], **scaled, "rope_type": scaled["type"]}}
    theta = scaled.pop("rope_theta")
    assert _parse({**older, "rope_theta": theta, "rope_scaling": scaled}) == _parse(newer)


def _parse(raw: dict[str, Any]) -> ModelConfig:
    return parse_hf_config(raw, name="model")


def test_fields_that_an_architecture_does_not_have_are_ignored_as_transformers_ignores_them() -> None:
    ignored: dict[str, dict[str, Any]] = {
        "llama": {"sliding_window": 7, "layer_types": ["sliding_attention"] * 3},
        "mistral": {"attention_bias": True, "mlp_bias": True},
        "qwen2": {"attention_bias": True, "mlp_bias": True},
        "qwen3": {"mlp_bias": True, "full_attention_interval": 2},
        "qwen3_5": {"mlp_bias": True, "sliding_window": 7},
        "qwen3_moe": {"mlp_bias": True, "layer_types": ["sliding_attention"] * 3, "shared_expert_intermediate_size": 8},
        "qwen3_5_moe": {"mlp_bias": True, "norm_topk_prob": False, "mlp_only_layers": [0], "intermediate_size": 8},
    }
    for arch in ARCHITECTURES:
        raw = tiny_transformers_model(arch).config.to_dict()
        assert _parse({**raw, **ignored[arch]}) == _parse(raw)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": "2", "rms_norm_eps": None}, "'num_hidden_layers' expected int, got str"),
        ({"rope_parameters": {"rope_type": "linear"}}, "Missing required keys in `rope_parameters`"),
        (
            {
                "rope_parameters": {
                    "rope_type": "linear",
                    "rope_theta": 1e4,
                    "factor": 2.0,
                    "partial_rotary_factor": 0.5,
                }
            },
            "partial_rotary_factor with RoPE scaling 'linear' is nothing that llama has",
        ),
    ],
)
def test_what_transformers_refuses_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CorruptFile, match=message) as caught:
        _parse({**SMALL, "architectures": ["LlamaForCausalLM"], **changes})
    assert "\n" not in str(caught.value)


def test_rope_that_differs_between_layers_is_refused() -> None:
    nested = {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")}
    with pytest.raises(UnsupportedModel, match="differs between layers"):
        _parse({**SMALL, "architectures": ["Qwen3ForCausalLM"], "rope_parameters": nested})
