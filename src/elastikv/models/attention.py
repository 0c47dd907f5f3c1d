"""Multi-head attention: its weights by their names."""

from __future__ import annotations

import torch

from elastikv.kernels.rope import Rope
from elastikv.kernels.weights import AttentionWeights, Norms
from elastikv.weights.config import ModelConfig
from elastikv.weights.loader import WeightLoader


def read_attention(
    config: ModelConfig,
    loader: WeightLoader,
    layer: int,
    norms: Norms,
    rope: Rope,
    *,
    gate_order: torch.Tensor | None = None,
) -> AttentionWeights:
    """gate_order: for gated attention, whose file keeps gates in q_proj: the order of rows that puts them last."""
    prefix = f"model.layers.{layer}.self_attn."
    width, kv_width = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    n_rows = width + 2 * kv_width + (0 if gate_order is None else width)

    def norm(name: str) -> torch.Tensor:
        return loader.vector(f"{prefix}{name}.weight", (config.head_dim,), offset=config.norm_offset)

    return AttentionWeights(
        norms,
        projection=loader.linear(
            [prefix + name for name in ("q_proj", "k_proj", "v_proj")],
            (n_rows, config.hidden_size),
            bias=config.qkv_bias,
            order=gate_order,
        ),
        output=loader.linear([prefix + "o_proj"], (config.hidden_size, width), bias=config.out_bias),
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        head_dim=config.head_dim,
        rope=rope,
        scale=config.head_dim**-0.5,
        qk_norms=(norm("q_norm"), norm("k_norm"), config.rms_norm_eps) if config.qk_norm else None,
        gated=gate_order is not None,
    )
