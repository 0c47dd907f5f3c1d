"""Layers bound to their weights: what Python looks up once, so that a step's call is little more than the call."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch

from elastikv.batch import UBatch
from elastikv.kernels.base import AttentionWeights, DeltaNetWeights, LinearParts, MlpWeights, PackedTensor
from elastikv.kernels.cpu import layers
from elastikv.kernels.cpu.attention.decode import scratch_floats
from elastikv.kernels.cpu.formats import CELLS, WEIGHTS
from elastikv.kernels.cpu.matmul.linear import LinearKernel, matrix_of
from elastikv.kernels.cpu.matmul.skinny import Product
from elastikv.kernels.cpu.plan import Planner, state_table
from elastikv.memory.kv_cache import KVCache
from elastikv.memory.recurrent import RecurrentMemory


class BoundLinear:
    """A fused matrix whose parts have at most two formats.

    arguments: a product and its parts, and another's (the same without parts, if there is one format only). Parts:
    int64 ``[n_parts, 6]``, as ``layers`` takes them.
    """

    def __init__(self, parts: LinearParts, products: list[Product]) -> None:
        first = products[0]
        other = next((product for product in products if product is not first), first)
        ours = [index for index, product in enumerate(products) if product is first]
        others = [index for index, product in enumerate(products) if product is not first]
        self.arguments = (first, _table(parts, ours), other, _table(parts, others))
        self.max_rows = min(product.max_rows for product in products)
        self._parts = parts  # keeps what the addresses point to


def _table(parts: LinearParts, indices: Sequence[int]) -> np.ndarray:
    chosen = [parts[index] for index in indices]
    lines = [(*matrix_of(part.weight, part.bias), part.columns.start) for part in chosen]
    return np.array(lines, dtype=np.int64).reshape(-1, 6)


def bind(parts: LinearParts, linear: LinearKernel) -> BoundLinear | None:
    """None where there are more formats, or one that is not multiplied as it is."""
    if any(isinstance(part.weight, PackedTensor) and part.weight.type not in WEIGHTS for part in parts):
        return None
    products = [linear.product(part.weight) for part in parts]
    return BoundLinear(parts, products) if len(set(products)) <= 2 else None


def bind_one(parts: LinearParts, linear: LinearKernel) -> BoundLinear | None:
    """The same for a matrix that has a single part."""
    return bind(parts, linear) if len(parts) == 1 else None


class BoundMlp:
    """An ``MlpKernel``."""

    def __init__(self, gate_up: BoundLinear, down: BoundLinear, weights: MlpWeights) -> None:
        self._gate_up = gate_up
        self._down = down
        self._weights = weights
        self._norms = (weights.norm.data_ptr(), weights.next_norm.data_ptr())
        self._max_rows = min(gate_up.max_rows, down.max_rows)

    def __call__(
        self,
        delta: torch.Tensor,
        residual: torch.Tensor,
        normed: torch.Tensor,
        wide: torch.Tensor,
        inner: torch.Tensor,
    ) -> bool:
        n, width = inner.shape
        if n > self._max_rows:
            return False
        layers.mlp(
            *self._gate_up.arguments,
            *self._down.arguments[:2],
            self._norms,
            self._weights.eps,
            (n, residual.shape[1], width),
            (delta.data_ptr(), residual.data_ptr(), normed.data_ptr(), wide.data_ptr(), inner.data_ptr()),
        )
        return True


class BoundAttention:
    """An ``AttentionKernel``. scratch_of: that many float32 values; at most ``max_scratch_floats`` are asked for."""

    def __init__(
        self,
        projection: BoundLinear,
        output: BoundLinear,
        weights: AttentionWeights,
        plan_of: Planner,
        scratch_of: Callable[[int], torch.Tensor],
        max_scratch_floats: int,
    ) -> None:
        self._projection = projection
        self._output = output
        self._weights = weights
        self._plan_of = plan_of
        self._scratch_of = scratch_of
        norms = weights.norms
        self._norms = (0, 0) if norms is None else (norms[0].data_ptr(), norms[1].data_ptr())
        self._eps = 0.0 if norms is None else norms[2]
        heads = (weights.n_heads, weights.n_kv_heads, weights.head_dim, weights.head_dim)
        self._row_floats = {
            types: scratch_floats(*heads, *(CELLS[name] for name in types))
            for types in itertools.product(CELLS, repeat=2)
        }
        rows_at_once = max(max_scratch_floats // max(self._row_floats.values()), 1)
        self._max_rows = min(projection.max_rows, output.max_rows, rows_at_once)

    def __call__(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        cache: KVCache,
        layer: int,
        ubatch: UBatch,
        wide: torch.Tensor,
        inner: torch.Tensor,
        out: torch.Tensor,
    ) -> bool:
        plan, (n, hidden), weights = self._plan_of(ubatch), x.shape, self._weights
        if plan.rows is None or n > self._max_rows:
            return False
        scratch = self._scratch_of(n * self._row_floats[cache.k_format.name, cache.v_format.name])
        layers.attention(
            *self._projection.arguments,
            *self._output.arguments[:2],
            CELLS[cache.k_format.name],
            CELLS[cache.v_format.name],
            self._norms,
            self._eps,
            weights.scale,
            cache.layers[layer].window or 0,
            weights.gated,
            (hidden, weights.n_heads, weights.n_kv_heads, weights.head_dim, cos.shape[1]),
            cache.addresses(layer, plan.rows.seq_ids),
            plan.row_numbers,
            ubatch.positions,
            plan.rows.ends,
            tuple(tensor.data_ptr() for tensor in (x, cos, sin, wide, inner, scratch)),
            out.data_ptr(),
        )
        return True


class BoundDeltaNet:
    """A ``DeltaNetKernel``."""

    def __init__(self, projection: BoundLinear, output: BoundLinear, weights: DeltaNetWeights) -> None:
        self._projection = projection
        self._output = output
        self._weights = weights
        self._addresses = tuple(
            tensor.data_ptr() for tensor in (weights.conv, weights.rate, weights.bias, weights.norm)
        )
        heads = (weights.n_k_heads, weights.n_v_heads, weights.k_dim, weights.v_dim)
        self._shape = (*heads, weights.conv.shape[1])
        self._max_rows = min(projection.max_rows, output.max_rows)

    def __call__(
        self,
        x: torch.Tensor,
        memory: RecurrentMemory,
        layer: int,
        ubatch: UBatch,
        wide: torch.Tensor,
        conv: torch.Tensor,
        gates: torch.Tensor,
        inner: torch.Tensor,
        out: torch.Tensor,
    ) -> bool:
        n, hidden = x.shape
        if n > self._max_rows:
            return False
        layers.delta_net(
            *self._projection.arguments,
            *self._output.arguments[:2],
            self._addresses,
            self._weights.eps,
            (n, hidden, *self._shape),
            state_table(memory, layer, ubatch, 0),
            state_table(memory, layer, ubatch, 1),
            tuple(tensor.data_ptr() for tensor in (x, wide, conv, gates, inner)),
            out.data_ptr(),
        )
        return True
