"""Sessions that version 0.1.0 saved restore: neither a model's fingerprint nor the layout of its cells has changed.

The files are that version's own: ``python tests/engine/test_old_sessions.py``, run with its sources, wrote them.
Weights are made of integers, so that they are the same wherever and whenever they are made.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from elastikv import LLM
from elastikv.memory.snapshot import load_sequence, save_sequence

SESSIONS = Path(__file__).parent / "sessions"
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]
N_VOCAB = 16

_COMMON: dict[str, Any] = {
    "vocab_size": N_VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": False,
    "eos_token_id": 0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"attention_bias": True, "mlp_bias": True},
    "MistralForCausalLM": {"sliding_window": 6},
    "Qwen2ForCausalLM": {"sliding_window": 4096, "use_sliding_window": False},
    "Qwen3ForCausalLM": {"attention_bias": False, "sliding_window": None, "tie_word_embeddings": True},
    "Qwen3_5ForCausalLM": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 1,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 4,
        "linear_value_head_dim": 4,
        "linear_conv_kernel_dim": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    },
}


def shapes(config: dict[str, Any], architecture: str) -> dict[str, tuple[int, ...]]:
    """Of all tensors, by name."""
    hidden, inner, width, kv_width = 16, 24, 16, 8
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (N_VOCAB, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (N_VOCAB, hidden)
    for layer in range(2):
        of_layer: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
            "mlp.gate_proj.weight": (inner, hidden),
            "mlp.up_proj.weight": (inner, hidden),
            "mlp.down_proj.weight": (hidden, inner),
        }
        if config.get("layer_types", ["", ""])[layer] == "linear_attention":
            of_layer |= {
                "linear_attn.in_proj_qkv.weight": (16, hidden),
                "linear_attn.in_proj_z.weight": (8, hidden),
                "linear_attn.in_proj_a.weight": (2, hidden),
                "linear_attn.in_proj_b.weight": (2, hidden),
                "linear_attn.conv1d.weight": (16, 1, 4),
                "linear_attn.A_log": (2,),
                "linear_attn.dt_bias": (2,),
                "linear_attn.norm.weight": (4,),
                "linear_attn.out_proj.weight": (hidden, 8),
            }
        else:
            n_q = 2 * width if architecture.startswith("Qwen3_5") else width  # and a gate
            rows = {"q_proj": n_q, "k_proj": kv_width, "v_proj": kv_width, "o_proj": hidden}
            of_layer |= {f"self_attn.{part}.weight": (n, hidden) for part, n in rows.items()}
            biased = rows if config.get("attention_bias") else ("q_proj", "k_proj", "v_proj")
            if architecture.startswith(("Llama", "Qwen2")):
                of_layer |= {f"self_attn.{part}.bias": (rows[part],) for part in biased}
            if architecture.startswith("Qwen3"):
                of_layer |= {"self_attn.q_norm.weight": (8,), "self_attn.k_norm.weight": (8,)}
        if config.get("mlp_bias"):
            of_layer |= {f"mlp.{part}_proj.bias": (n,) for part, n in (("gate", 24), ("up", 24), ("down", 16))}
        found |= {f"model.layers.{layer}.{name}": shape for name, shape in of_layer.items()}
    return found


def write_model(architecture: str, folder: Path) -> Path:
    config = {"architectures": [architecture], **_COMMON, **CONFIGS[architecture]}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {}
    for number, (name, shape) in enumerate(shapes(config, architecture).items()):
        values = (torch.arange(torch.Size(shape).numel()) * (7 * number + 5) + number) % 31 - 15
        tensors[name] = (values.float() / 32 + (1 if len(shape) == 1 else 0)).view(shape)
    save_file(tensors, folder / "model.safetensors")
    vocabulary = {chr(ord("a") + token_id): token_id for token_id in range(N_VOCAB)}
    Tokenizer(WordLevel(vocabulary, unk_token="a")).save(str(folder / "tokenizer.json"))
    return folder


def open_model(architecture: str, folder: Path) -> LLM:
    return LLM(write_model(architecture, folder / "model"), n_ctx=64, kernels="reference", kv_storage="copy")


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_session_of_0_1_0_restores_and_goes_on(architecture: str, tmp_path: Path) -> None:
    with open_model(architecture, tmp_path) as llm:
        llm.forward(TOKENS)
        wanted = llm.forward([7])
        llm.clear()
        file = SESSIONS / f"{architecture}.session"
        header = load_sequence(file, llm.memory, 0, llm.model.info.fingerprint)
        assert header.token_ids == TOKENS
        assert wanted.isfinite().all()
        torch.testing.assert_close(llm.forward([7]), wanted, atol=1e-3, rtol=0)


def write_sessions(target: Path) -> None:
    target.mkdir(exist_ok=True)
    for architecture in CONFIGS:
        with tempfile.TemporaryDirectory() as folder, open_model(architecture, Path(folder)) as llm:
            llm.forward(TOKENS)
            file = target / f"{architecture}.session"
            save_sequence(file, llm.memory, 0, TOKENS, llm.model.info.fingerprint)


if __name__ == "__main__":
    write_sessions(Path(sys.argv[1]) if len(sys.argv) > 1 else SESSIONS)
