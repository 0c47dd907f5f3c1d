"""Multi-head attention over a stream's cells."""

from __future__ import annotations

import torch

from elastikv.kernels.base import AttentionWeights, Kernels
from elastikv.models.decoder import Step
from elastikv.weights.config import ModelConfig
from elastikv.weights.linear import FusedLinear
from elastikv.weights.loader import WeightLoader


class Attention:
    """A ``Mixer``: one projection gives q, k, v (and a gate of q's shape, if gated), heads side by side.

    norms: weights of the norms of q and k, each f32 ``[head_dim]``, or None.
    """

    def __init__(
        self,
        config: ModelConfig,
        kernels: Kernels,
        layer: int,
        *,
        projection: FusedLinear,
        output: FusedLinear,
        norms: tuple[torch.Tensor, torch.Tensor] | None,
        gated: bool = False,
    ) -> None:
        n_heads, n_kv_heads = config.n_heads, config.n_kv_heads
        with_eps = None if norms is None else (*norms, config.rms_norm_eps)
        weights = AttentionWeights(n_heads, n_kv_heads, config.head_dim, with_eps, gated, config.head_dim**-0.5)
        self._bound = kernels.bind_attention(projection.parts, output.parts, weights)
        self._weights = weights
        self._kernels = kernels
        self._layer = layer
        self._projection = projection
        self._output = output
        self._heads = (n_heads, config.head_dim)
        self._split = [n_heads, n_kv_heads, n_kv_heads, n_heads] if gated else [n_heads, n_kv_heads, n_kv_heads]
        self.buffer_widths = {"wide": projection.n_out, "inner": output.n_in}

    def __call__(self, x: torch.Tensor, step: Step, out: torch.Tensor) -> None:
        kernels, weights, layer, cache, ubatch = self._kernels, self._weights, self._layer, step.attention, step.ubatch
        wide, inner = step.view("wide", self._projection.n_out), step.view("inner", *self._heads)
        if self._bound is not None and self._bound(x, step.cos, step.sin, cache, layer, ubatch, wide, inner, out):
            return
        n = ubatch.n_tokens
        projected = self._projection(x, out=wide)
        q, k, v, *gate = projected.view(n, -1, weights.head_dim).split(self._split, dim=1)
        kernels.rope_store(q, k, v, step.cos, step.sin, weights.norms, cache, layer, ubatch)
        mixed = kernels.attention(q, cache, layer, ubatch, weights.scale, out=inner)
        if gate:
            kernels.sigmoid_mul(mixed, gate[0])
        self._output(mixed.view(n, -1), out=out)


def read_attention(
    config: ModelConfig, loader: WeightLoader, layer: int, ordinal: int, *, gate_order: torch.Tensor | None = None
) -> Attention:
    """Read layer ``layer``, which is attention layer number ``ordinal``.

    gate_order: for gated attention, whose file keeps gates in q_proj: the order of rows that puts them last.
    """
    prefix = f"model.layers.{layer}.self_attn."
    width, kv_width = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    n_rows = width + 2 * kv_width + (0 if gate_order is None else width)

    def norm(name: str) -> torch.Tensor:
        return loader.vector(f"{prefix}{name}.weight", (config.head_dim,), offset=config.norm_offset)

    return Attention(
        config,
        loader.kernels,
        ordinal,
        projection=loader.linear(
            [prefix + name for name in ("q_proj", "k_proj", "v_proj")],
            (n_rows, config.hidden_size),
            bias=config.qkv_bias,
            order=gate_order,
        ),
        output=loader.linear([prefix + "o_proj"], (config.hidden_size, width), bias=config.out_bias),
        norms=(norm("q_norm"), norm("k_norm")) if config.qk_norm else None,
        gated=gate_order is not None,
    )
