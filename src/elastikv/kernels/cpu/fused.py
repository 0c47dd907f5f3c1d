"""Layers that compute a few tokens in one compiled call, and more of them as they are composed.

What Python can look up once, it looks up when a layer is made, so that a step's call is little more than the call.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
import torch
from typing_extensions import override

from elastikv.kernels.base import ForwardPass, Kernels
from elastikv.kernels.composed import Attention, DeltaNet, Experts, Mlp
from elastikv.kernels.cpu import experts, layers
from elastikv.kernels.cpu.attention.decode import scratch_floats
from elastikv.kernels.cpu.formats import CELLS, WEIGHTS
from elastikv.kernels.cpu.matmul.linear import LinearKernel, matrix_of
from elastikv.kernels.cpu.matmul.skinny import Product
from elastikv.kernels.cpu.plan import Planner, state_table
from elastikv.kernels.weights import (
    AttentionWeights,
    DeltaNetWeights,
    ExpertsWeights,
    LinearWeights,
    MlpWeights,
    PackedTensor,
    Weight,
)


class LinearArguments:
    """A fused matrix whose parts have at most two formats, as compiled layers take it.

    tables: a product and its parts, and another's (the same without parts, if there is one format only). Parts:
    int64 ``[n_parts, 6]``, see ``layers.linear``. They hold addresses, so the weights must live as long.
    """

    def __init__(self, weights: LinearWeights, products: list[Product]) -> None:
        first = products[0]
        other = next((product for product in products if product is not first), first)
        ours = [index for index, product in enumerate(products) if product is first]
        others = [index for index, product in enumerate(products) if product is not first]
        self.tables = (first, _table(weights, ours), other, _table(weights, others))
        self.max_rows = min(product.max_rows for product in products)


def _table(weights: LinearWeights, indices: Sequence[int]) -> np.ndarray:
    chosen = [weights.parts[index] for index in indices]
    lines = [(*matrix_of(part.weight, part.bias), part.columns.start) for part in chosen]
    return np.array(lines, dtype=np.int64).reshape(-1, 6)


def arguments_of(weights: LinearWeights, linear: LinearKernel, max_formats: int = 2) -> LinearArguments | None:
    """A fused matrix as compiled layers take it, or None where they cannot.

    They take at most ``max_formats`` formats (if one, one part), each with kernels of its own.
    """
    if max_formats == 1 and len(weights.parts) > 1:
        return None
    if not all(_is_multiplied(part.weight) for part in weights.parts):
        return None
    products = [linear.product(part.weight) for part in weights.parts]
    return LinearArguments(weights, products) if len(set(products)) <= max_formats else None


def _is_multiplied(weight: Weight) -> bool:
    return not isinstance(weight, PackedTensor) or weight.type in WEIGHTS


def _addresses(*tensors: torch.Tensor | None) -> Any:
    """A tuple of as many integers, 0 for None. Its length, which kernels are compiled for, is beyond type checkers."""
    return tuple(0 if tensor is None else tensor.data_ptr() for tensor in tensors)


class FusedMlp(Mlp):
    """Few tokens in one call of ``layers.mlp``, more as composed."""

    def __init__(self, kernels: Kernels, weights: MlpWeights, gate_up: LinearArguments, down: LinearArguments) -> None:
        super().__init__(kernels, weights)
        self._max_rows = min(gate_up.max_rows, down.max_rows)
        self._matrices = (*gate_up.tables, *down.tables[:2])
        self._norm_weights = _addresses(weights.norms.before, weights.norms.after)

    @override
    def __call__(self, delta: torch.Tensor, residual: torch.Tensor, forward: ForwardPass) -> None:
        n, hidden = delta.shape
        if n > self._max_rows:
            super().__call__(delta, residual, forward)
            return
        normed, wide, inner = forward.views(self.buffer_widths, n)
        layers.mlp(
            *self._matrices,
            self._norm_weights,
            self._norms.eps,
            (n, hidden, inner.shape[1]),
            (delta.data_ptr(), residual.data_ptr(), normed.data_ptr(), wide.data_ptr(), inner.data_ptr()),
        )


class FusedAttention(Attention):
    """Few tokens in one call of ``layers.attention``, more as composed.

    scratch_of: gives that many float32 values; at most ``max_scratch_floats`` are asked for.
    """

    def __init__(
        self,
        kernels: Kernels,
        weights: AttentionWeights,
        layer: int,
        projection: LinearArguments,
        output: LinearArguments,
        plan_of: Planner,
        scratch_of: Callable[[int], torch.Tensor],
        max_scratch_floats: int,
    ) -> None:
        super().__init__(kernels, weights, layer)
        self._plan_of = plan_of
        self._scratch_of = scratch_of
        self._matrices = (*projection.tables, *output.tables[:2])
        q_norm, k_norm, eps = weights.qk_norms or (None, None, 0.0)
        self._norm_weights = _addresses(weights.norms.before, weights.norms.after, q_norm, k_norm)
        self._eps = (weights.norms.eps, eps)
        heads = (weights.n_heads, weights.n_kv_heads, weights.head_dim, weights.head_dim)
        self._row_floats = {
            formats: scratch_floats(*heads, *(CELLS[name] for name in formats))
            for formats in itertools.product(CELLS, repeat=2)
        }
        rows_at_once = max(max_scratch_floats // max(self._row_floats.values()), 1)
        self._max_rows = min(projection.max_rows, output.max_rows, rows_at_once)

    @override
    def __call__(self, delta: torch.Tensor, residual: torch.Tensor, forward: ForwardPass) -> None:
        plan, (n, hidden), weights = self._plan_of(forward.ubatch), delta.shape, self._weights
        if plan.rows is None or n > self._max_rows:
            super().__call__(delta, residual, forward)
            return
        cache, layer = forward.cache, self._layer
        formats = cache.k_format.name, cache.v_format.name
        cos, sin = forward.rotations[weights.rope]
        views, scratch = forward.views(self.buffer_widths, n), self._scratch_of(n * self._row_floats[formats])
        layers.attention(
            *self._matrices,
            CELLS[formats[0]],
            CELLS[formats[1]],
            self._norm_weights,
            self._eps,
            weights.scale,
            cache.layers[layer].window or 0,
            weights.gated,
            (hidden, weights.n_heads, weights.n_kv_heads, weights.head_dim, cos.shape[1]),
            cache.addresses(layer, plan.rows.seq_ids),
            plan.row_numbers,
            forward.ubatch.positions,
            plan.rows.ends,
            _addresses(delta, residual, *views, cos, sin, scratch),
        )


class FusedDeltaNet(DeltaNet):
    """Few tokens in one call of ``layers.delta_net``, more as composed."""

    def __init__(
        self,
        kernels: Kernels,
        weights: DeltaNetWeights,
        layer: int,
        projection: LinearArguments,
        output: LinearArguments,
    ) -> None:
        super().__init__(kernels, weights, layer)
        self._matrices = (*projection.tables, *output.tables[:2])
        self._norm_weights = _addresses(weights.norms.before, weights.norms.after)
        self._vectors = _addresses(weights.conv, weights.rate, weights.bias, weights.norm)
        heads = (weights.n_k_heads, weights.n_v_heads, weights.k_dim, weights.v_dim)
        self._shape = (*heads, weights.conv.shape[1])
        self._max_rows = min(projection.max_rows, output.max_rows)

    @override
    def __call__(self, delta: torch.Tensor, residual: torch.Tensor, forward: ForwardPass) -> None:
        n, hidden = delta.shape
        if n > self._max_rows:
            super().__call__(delta, residual, forward)
            return
        layers.delta_net(
            *self._matrices,
            self._norm_weights,
            self._vectors,
            (self._norms.eps, self._weights.eps),
            (n, hidden, *self._shape),
            state_table(forward.states, self._layer, forward.ubatch, 0),
            state_table(forward.states, self._layer, forward.ubatch, 1),
            _addresses(delta, residual, *forward.views(self.buffer_widths, n)),
        )


def _experts_tables(matrices: Sequence[LinearWeights], linear: LinearKernel) -> dict[Product, np.ndarray] | None:
    """One matrix of each expert (gate_up or down) as ``experts.experts`` takes it: parts by product.

    None where experts differ in formats, or have one that is not multiplied as it is, or biases. The tables hold
    addresses, so the weights must live as long.
    """
    first, lines = matrices[0], dict[Product, list[tuple[int, ...]]]()
    if any(len(matrix.parts) != len(first.parts) for matrix in matrices):
        return None
    for parts in zip(*(matrix.parts for matrix in matrices), strict=True):
        if not all(_is_multiplied(part.weight) and part.bias is None for part in parts):
            return None
        product, *others = {linear.product(part.weight) for part in parts}
        if others:
            return None
        _, stride, n_out, n_in, _ = matrix_of(parts[0].weight, None)
        addresses = (matrix_of(part.weight, None)[0] for part in parts)
        lines.setdefault(product, []).append((stride, n_out, n_in, parts[0].columns.start, *addresses))
    return {product: np.array(table, dtype=np.int64) for product, table in lines.items()}


class ExpertsArguments:
    """A layer's matrices as ``experts.experts`` takes them: addresses, so the weights must live as long."""

    def __init__(
        self,
        gate_up: dict[Product, np.ndarray],
        down: dict[Product, np.ndarray],
        shared: tuple[LinearArguments, LinearArguments] | None,
    ) -> None:
        (first, parts), *others = gate_up.items()
        other, other_parts = others[0] if others else (first, parts[:0])
        ((down_product, down_parts),) = down.items()
        self.matrices = (first, parts, other, other_parts, down_product, down_parts)
        # Without a shared expert, whose width is 0 then, kernels want something of these types and do not look at it.
        self.shared = self.matrices if shared is None else (*shared[0].tables, *shared[1].tables[:2])
        rows = [product.max_rows for product in (first, other, down_product)]
        self.max_rows = min(*rows, *(each.max_rows for each in shared or ()))


def experts_arguments_of(weights: ExpertsWeights, linear: LinearKernel) -> ExpertsArguments | None:
    """A layer's experts as ``experts.experts`` takes them, or None where it cannot.

    It takes up to two formats in gate_up and one in down, each with kernels of its own, and no biases.
    """
    gate_up = _experts_tables([expert.gate_up for expert in weights.experts], linear)
    down = _experts_tables([expert.down for expert in weights.experts], linear)
    if gate_up is None or len(gate_up) > 2 or down is None or sum(map(len, down.values())) > 1:
        return None
    if weights.shared is None:
        return ExpertsArguments(gate_up, down, None)
    shared_gate_up = arguments_of(weights.shared.gate_up, linear)
    shared_down = arguments_of(weights.shared.down, linear, 1)
    if shared_gate_up is None or shared_down is None:
        return None
    return ExpertsArguments(gate_up, down, (shared_gate_up, shared_down))


class FusedExperts(Experts):
    """Few tokens in one call of ``experts.experts``, more as composed.

    scratch_of: gives that many float32 values; at most ``max_scratch_floats`` are asked for.
    """

    def __init__(
        self,
        kernels: Kernels,
        weights: ExpertsWeights,
        arguments: ExpertsArguments,
        scratch_of: Callable[[int], torch.Tensor],
        max_scratch_floats: int,
    ) -> None:
        super().__init__(kernels, weights)
        self._scratch_of = scratch_of
        self._arguments = arguments
        self._norm_weights = _addresses(weights.norms.before, weights.norms.after)
        width, shared_width = self.buffer_widths["inner"], self.buffer_widths.get("shared_inner", 0)
        self._shape = (weights.router.shape[1], len(weights.experts), weights.n_used, width, shared_width)
        self._row_floats = experts.scratch_floats(*self._shape)
        self._max_rows = min(experts.MAX_TOKENS, arguments.max_rows, max_scratch_floats // self._row_floats)

    @override
    def __call__(self, delta: torch.Tensor, residual: torch.Tensor, forward: ForwardPass) -> None:
        n, hidden = delta.shape
        if n > self._max_rows:
            super().__call__(delta, residual, forward)
            return
        normed, scratch = forward.buffers.view("normed", (n, hidden)), self._scratch_of(n * self._row_floats)
        experts.experts(
            self._weights.router.data_ptr(),
            self._weights.normalised,
            *self._arguments.matrices,
            *self._arguments.shared,
            self._norm_weights,
            self._norms.eps,
            (n, *self._shape),
            (delta.data_ptr(), residual.data_ptr(), normed.data_ptr(), scratch.data_ptr()),
            numba.get_num_threads(),
        )
