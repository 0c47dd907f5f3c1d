"""Rotary embedding under every scaling, against transformers, and K moved to other positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.configs import parse_hf_config
from support.forward import decode, open_memory, random_ids
from support.tiny_models import N_VOCAB, tiny_model, tiny_transformers_model

from elastikv.kernels import select_kernels
from elastikv.models import load_model, read_config
from elastikv.models.config import RopeConfig
from elastikv.models.rope import make_rope

SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 500000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn, mscale": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 16.0,
        "original_max_position_embeddings": 256,
        "mscale": 1.0,
        "mscale_all_dim": 0.8,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
    },
    "yarn, attention factor": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 2.0,
        "original_max_position_embeddings": 2048,
        "attention_factor": 0.9,
    },
}


@pytest.mark.parametrize("scaling", SCALINGS)
def test_logits_and_frequencies_match_transformers(scaling: str, tmp_path: Path) -> None:
    overrides = {"rope_parameters": SCALINGS[scaling]}
    peer = tiny_transformers_model("llama", **overrides)
    path = tiny_model("llama", tmp_path, **overrides)
    rope = make_rope(read_config(path).rope)
    torch.testing.assert_close(rope.inv_freq, peer.model.rotary_emb.inv_freq, rtol=1e-6, atol=0)
    assert rope.attention_factor == pytest.approx(peer.model.rotary_emb.attention_scaling)

    model = load_model(path, kernels=select_kernels("reference")).model
    ids = random_ids(200, N_VOCAB)
    with torch.no_grad():
        wanted = peer(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(decode(model, open_memory(model), {0: ids})[0], wanted, atol=5e-5, rtol=0)


def test_layout_before_transformers_5() -> None:
    raw = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 10,
        "max_position_embeddings": 8192,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "rope_theta": 500000.0,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    }
    assert parse_hf_config(raw, name="old").rope == RopeConfig(
        dim=16, theta=500000.0, kind="linear", factor=2.0, n_ctx_original=8192
    )


@pytest.mark.parametrize("dim", [16, 6])
def test_rotated_k_is_k_of_the_later_position(dim: int) -> None:
    rope = make_rope(RopeConfig(dim=dim, kind="yarn", factor=4.0, n_ctx_original=64))
    k = torch.randn(5, 2, 16)

    def at(position: int) -> torch.Tensor:
        cos, sin = torch.empty(1, dim // 2), torch.empty(1, dim // 2)
        rope.angles(torch.tensor([position]), cos, sin)
        first, second = k[..., : dim // 2], k[..., dim // 2 : dim]
        return torch.cat([first * cos - second * sin, second * cos + first * sin, k[..., dim:]], dim=-1)

    torch.testing.assert_close(rope.rotate(at(40), 23), at(63), atol=1e-5, rtol=0)
    torch.testing.assert_close(rope.rotate(at(40), -40), at(0), atol=1e-5, rtol=0)


def test_frequency_factors_of_a_gguf_divide() -> None:
    plain = make_rope(RopeConfig(dim=4)).inv_freq
    assert torch.equal(make_rope(RopeConfig(dim=4, freq_factors=(1.0, 8.0))).inv_freq, plain / torch.tensor([1.0, 8.0]))
