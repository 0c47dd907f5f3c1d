"""Multi-head attention over a stream's cells."""

from __future__ import annotations

import torch

from elastikv.kernels.base import Kernels
from elastikv.models.decoder import Step
from elastikv.weights.config import ModelConfig
from elastikv.weights.linear import Linear


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
        projection: Linear,
        output: Linear,
        norms: tuple[torch.Tensor, torch.Tensor] | None,
        gated: bool = False,
    ) -> None:
        n_heads, n_kv_heads = config.n_heads, config.n_kv_heads
        self._kernels = kernels
        self._layer = layer
        self._projection = projection
        self._output = output
        self._norms = None if norms is None else (*norms, config.rms_norm_eps)
        self._heads = (n_heads, config.head_dim)
        self._split = [n_heads, n_kv_heads, n_kv_heads, n_heads] if gated else [n_heads, n_kv_heads, n_kv_heads]
        self._scale = config.head_dim**-0.5
        self.buffer_widths = {"wide": projection.n_out, "inner": output.n_in}

    def __call__(self, x: torch.Tensor, step: Step, out: torch.Tensor) -> None:
        kernels, layer, cache, ubatch = self._kernels, self._layer, step.attention, step.ubatch
        projected = self._projection(x, out=step.view("wide", self._projection.n_out))
        q, k, v, *gate = projected.view(len(x), -1, self._heads[1]).split(self._split, dim=1)
        kernels.rope_store(q, k, v, step.cos, step.sin, self._norms, cache, layer, ubatch)
        mixed = kernels.attention(q, cache, layer, ubatch, self._scale, out=step.view("inner", *self._heads))
        if gate:
            mixed.mul_(gate[0].sigmoid_())
        self._output(mixed.view(len(x), -1), out=out)
