"""What memory a config asks for, without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from elastikv.memory.base import KVLayer, RecurrentLayer
from elastikv.models import memory_layers, read_config

QWEN3_5_27B_TEXT: dict[str, Any] = {
    "model_type": "qwen3_5_text",
    "vocab_size": 248320,
    "max_position_embeddings": 262144,
    "hidden_size": 5120,
    "intermediate_size": 17408,
    "num_hidden_layers": 64,
    "full_attention_interval": 4,
    "num_attention_heads": 24,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 48,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.25},
}


@pytest.mark.parametrize("wrapped", [False, True])
def test_memory_of_a_real_hybrid(wrapped: bool, tmp_path: Path) -> None:
    raw = QWEN3_5_27B_TEXT
    if wrapped:
        raw = {"architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5", "text_config": raw}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    config = read_config(tmp_path / "config.json")
    layers = memory_layers(config)
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
    layers = memory_layers(read_config(tmp_path))
    assert tuple(layer.window for layer in layers if isinstance(layer, KVLayer)) == windows
