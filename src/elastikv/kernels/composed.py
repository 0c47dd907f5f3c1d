"""Whole layers composed of a backend's operations, once for every backend.

A backend inherits ``ComposedKernels`` and overrides what it can do as a whole, with subclasses of the layers here
that fall back to them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from typing_extensions import override

from elastikv.kernels import quants
from elastikv.kernels.base import EmbeddingLayer, ForwardPass, Kernels, LinearLayer, Sublayer
from elastikv.kernels.rope import Rope
from elastikv.kernels.weights import (
    Activation,
    AttentionWeights,
    DeltaNetWeights,
    ExpertsWeights,
    ExpertWeights,
    LinearPart,
    LinearWeights,
    MlpWeights,
    Norms,
    PackedTensor,
    Weight,
)


class ComposedKernels(Kernels):
    """The layers of ``Kernels``; a backend that inherits them adds the operations."""

    @override
    def linear_layer(self, weights: LinearWeights) -> Linear:
        return Linear(self, weights)

    @override
    def embedding_layer(self, weight: Weight, scale: float = 1.0) -> Embedding:
        return Embedding(weight, scale)

    @override
    def attention_layer(self, weights: AttentionWeights, layer: int) -> Attention:
        return Attention(self, weights, layer)

    @override
    def delta_net_layer(self, weights: DeltaNetWeights, layer: int) -> DeltaNet:
        return DeltaNet(self, weights, layer)

    @override
    def mlp_layer(self, weights: MlpWeights) -> Mlp:
        return Mlp(self, weights)

    @override
    def experts_layer(self, weights: ExpertsWeights) -> Experts:
        return Experts(self, weights)


class Linear(LinearLayer):
    """A ``LinearLayer``. Packed types that ``Kernels.linear`` does not take are dequantised, a few rows at a time."""

    def __init__(self, kernels: Kernels, weights: LinearWeights) -> None:
        self.weights = weights
        self._kernels = kernels

    @override
    def __call__(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        parts = self.weights.parts
        if len(parts) == 1:
            self._multiply(parts[0], x, out)
        else:
            for part in parts:
                self._multiply(part, x, out[:, part.columns])
        return out

    def _multiply(self, part: LinearPart, x: torch.Tensor, out: torch.Tensor) -> None:
        weight = part.weight
        if isinstance(weight, PackedTensor) and weight.type not in self._kernels.packed_types:
            self._multiply_unpacked(weight, part.bias, x, out)
        else:
            self._kernels.linear(x, weight, part.bias, out)

    def _multiply_unpacked(
        self, weight: PackedTensor, bias: torch.Tensor | None, x: torch.Tensor, out: torch.Tensor
    ) -> None:
        for rows in quants.row_tiles(*weight.shape):
            tile = quants.unpack(weight.data[rows], weight.type)
            self._kernels.linear(x, tile, None if bias is None else bias[rows], out[:, rows])


class Embedding(EmbeddingLayer):
    """Looks rows up in a dense matrix, or dequantises them."""

    def __init__(self, weight: Weight, scale: float) -> None:
        self.weight = weight
        self._scale = scale

    @override
    def __call__(self, token_ids: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        if isinstance(self.weight, PackedTensor):
            quants.unpack(self.weight.data[token_ids], self.weight.type, out)
        elif self.weight.dtype == torch.float32:
            torch.index_select(self.weight, 0, token_ids, out=out)
        else:
            out.copy_(self.weight[token_ids])
        return out if self._scale == 1.0 else out.mul_(self._scale)


class Residual(Sublayer):
    """The residual connection and the norms around f, which subclasses compute."""

    def __init__(self, kernels: Kernels, norms: Norms, rope: Rope | None = None, **buffer_widths: int) -> None:
        self.rope = rope
        self.buffer_widths: Mapping[str, int] = {"normed": len(norms.before), **buffer_widths}
        self._kernels = kernels
        self._norms = norms

    @override
    def __call__(self, delta: torch.Tensor, residual: torch.Tensor, forward: ForwardPass) -> None:
        kernels, norms = self._kernels, self._norms
        normed, *buffers = forward.views(self.buffer_widths, delta.shape[0])
        kernels.add_rms_norm(delta, residual, norms.before, norms.eps, out=normed)
        self._compute(normed, forward, *buffers, out=delta)
        if norms.after is not None:
            kernels.rms_norm(delta, norms.after, norms.eps, out=delta)

    def _compute(self, x: torch.Tensor, forward: ForwardPass, *buffers: torch.Tensor, out: torch.Tensor) -> None:
        """f of x ``[n, hidden_size]``; buffers: in the order of their names."""
        raise NotImplementedError


class Attention(Residual):
    """q, k and v by one product, norms and RoPE, the cells, softmax attention, a gate if there is one, the output."""

    def __init__(self, kernels: Kernels, weights: AttentionWeights, layer: int) -> None:
        super().__init__(kernels, weights.norms, weights.rope, wide=weights.projection.n_out, inner=weights.output.n_in)
        self._weights = weights
        self._layer = layer
        self._projection = kernels.linear_layer(weights.projection)
        self._output = kernels.linear_layer(weights.output)
        n_heads, n_kv_heads = weights.n_heads, weights.n_kv_heads
        self._split = [n_heads, n_kv_heads, n_kv_heads, *([n_heads] if weights.gated else [])]

    @override
    def _compute(self, x: torch.Tensor, forward: ForwardPass, *buffers: torch.Tensor, out: torch.Tensor) -> None:
        kernels, weights = self._kernels, self._weights
        at = (forward.cache, self._layer, forward.ubatch)
        wide, inner = buffers
        heads = self._projection(x, out=wide).unflatten(1, (-1, weights.head_dim))
        q, k, v, *gate = heads.split(self._split, dim=1)
        cos, sin = forward.rotations[weights.rope]
        kernels.rope_store(q, k, v, cos, sin, weights.qk_norms, *at)
        mixed = inner.unflatten(1, (weights.n_heads, weights.head_dim))
        kernels.attention(q, *at, weights.scale, out=mixed)
        if gate:
            kernels.sigmoid_mul(mixed, gate[0])
        self._output(inner, out=out)


class DeltaNet(Residual):
    """A gated delta net (Yang et al., arXiv:2412.06464): projection, gates, convolution, delta rule, norm, output."""

    def __init__(self, kernels: Kernels, weights: DeltaNetWeights, layer: int) -> None:
        n_v_heads, channels = weights.n_v_heads, weights.conv.shape[0]
        keys, values = weights.n_k_heads * weights.k_dim, n_v_heads * weights.v_dim
        super().__init__(
            kernels, weights.norms, wide=weights.projection.n_out, conv=channels, gates=2 * n_v_heads, inner=values
        )
        self._weights = weights
        self._layer = layer
        self._projection = kernels.linear_layer(weights.projection)
        self._output = kernels.linear_layer(weights.output)
        self._projected_split = [channels, values, n_v_heads, n_v_heads]
        self._conv_split = [keys, keys, values]

    @override
    def _compute(self, x: torch.Tensor, forward: ForwardPass, *buffers: torch.Tensor, out: torch.Tensor) -> None:
        kernels, weights = self._kernels, self._weights
        at = (forward.states, self._layer, forward.ubatch)
        wide, mixed, gates, inner = buffers
        qkv, z, b, a = self._projection(x, out=wide).split(self._projected_split, dim=1)
        decay, beta = gates.view(2, *b.shape)
        kernels.delta_gates(a, b, weights.rate, weights.bias, decay, beta)

        kernels.causal_conv(qkv, weights.conv, *at, out=mixed)
        q, k, v = mixed.split(self._conv_split, dim=1)
        keys, values = (weights.n_k_heads, weights.k_dim), (weights.n_v_heads, weights.v_dim)
        q, k, v, heads = q.unflatten(1, keys), k.unflatten(1, keys), v.unflatten(1, values), inner.unflatten(1, values)
        kernels.gated_delta_rule(q, k, v, decay, beta, *at, out=heads)
        kernels.gated_rms_norm(heads, z.unflatten(1, values), weights.norm, weights.eps, out=heads)
        self._output(inner, out=out)


class _GatedMlp:
    """``down(activation(gate) * up)``, gate and up by one product: x ``[n, hidden_size]`` to out.

    wide ``[n, 2 * width]`` and inner ``[n, width]`` are buffers.
    """

    def __init__(self, kernels: Kernels, weights: MlpWeights | ExpertWeights, activation: Activation = "silu") -> None:
        self._gate_up = kernels.linear_layer(weights.gate_up)
        self._down = kernels.linear_layer(weights.down)
        self._activate = {"silu": kernels.silu_mul, "gelu_tanh": kernels.gelu_mul}[activation]

    def __call__(self, x: torch.Tensor, wide: torch.Tensor, inner: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        self._gate_up(x, out=wide)
        self._activate(wide, out=inner)
        return self._down(inner, out=out)


class Mlp(Residual):
    """A gated MLP between its norms."""

    def __init__(self, kernels: Kernels, weights: MlpWeights) -> None:
        super().__init__(kernels, weights.norms, wide=weights.gate_up.n_out, inner=weights.down.n_in)
        self._weights = weights
        self._mlp = _GatedMlp(kernels, weights, weights.activation)

    @override
    def _compute(self, x: torch.Tensor, forward: ForwardPass, *buffers: torch.Tensor, out: torch.Tensor) -> None:
        wide, inner = buffers
        self._mlp(x, wide, inner, out=out)


class Experts(Residual):
    """A mixture of experts. Tokens are grouped by expert: each expert multiplies once with all of its tokens."""

    def __init__(self, kernels: Kernels, weights: ExpertsWeights) -> None:
        first, shared, hidden = weights.experts[0], weights.shared, weights.router.shape[1]
        widths = {"wide": first.gate_up.n_out, "inner": first.down.n_in}
        if shared is not None:
            widths |= {"shared_wide": shared.gate_up.n_out, "shared_inner": shared.down.n_in}
        super().__init__(kernels, weights.norms, None, **widths, gathered=hidden, expert_out=hidden)
        self._weights = weights
        self._experts = [_GatedMlp(kernels, expert) for expert in weights.experts]
        self._shared = None if shared is None else _GatedMlp(kernels, shared)

    @override
    def _compute(self, x: torch.Tensor, forward: ForwardPass, *buffers: torch.Tensor, out: torch.Tensor) -> None:
        wide, inner, *shared_buffers, gathered, expert_out = buffers
        router, n_used, normalised = self._weights.router, self._weights.n_used, self._weights.normalised
        weights, experts = self._kernels.route(x, router, len(self._experts), n_used, normalised)
        by_expert = experts.flatten().argsort(stable=True)
        counts = experts.flatten().bincount(minlength=len(self._experts)).tolist()
        tokens = (by_expert // n_used).split(counts)
        shares = weights[:, :n_used].flatten()[by_expert].unsqueeze(1).split(counts)

        out.zero_()
        for expert, n, rows, share in zip(self._experts, counts, tokens, shares, strict=True):
            if n:
                torch.index_select(x, 0, rows, out=gathered[:n])
                expert(gathered[:n], wide[:n], inner[:n], out=expert_out[:n])
                out.index_add_(0, rows, expert_out[:n].mul_(share))
        if self._shared is not None:
            out.add_(self._shared(x, shared_buffers[0], shared_buffers[1], out=expert_out).mul_(weights[:, n_used:]))
