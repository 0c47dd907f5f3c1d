"""Floating-point values as they are: f32, f16, bf16. All arithmetic is in float32."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from elastikv.kernels.cpu.formats.cells import CELLS_PREFETCH, SCORE_STRIDE, CellLayout
from elastikv.kernels.cpu.formats.layout import compiled, compiled_constant, load_values, store_values
from elastikv.kernels.cpu.jit import inlined
from elastikv.kernels.cpu.simd.bf16 import load_bf16_pairs
from elastikv.kernels.cpu.simd.math import fma, splat
from elastikv.kernels.cpu.simd.memory import (
    load_bf16,
    load_bf16_part,
    load_f16,
    load_f16_part,
    load_f32,
    load_f32_part,
    load_float,
    store_bf16,
    store_bf16_part,
    store_f16,
    store_f16_part,
    store_f32,
    store_f32_part,
)
from elastikv.kernels.cpu.simd.rows import four_rows, offset_rows, prefetch_bytes
from elastikv.kernels.cpu.simd.vector import LANES, Vector

# --- sums of V


@inlined
def _load_weights(weights: int) -> tuple[Vector, Vector, Vector, Vector]:
    """One query head's softmax weights of four cells, each in all lanes."""
    return (
        splat(load_float(weights)),
        splat(load_float(weights + 4)),
        splat(load_float(weights + 8)),
        splat(load_float(weights + 12)),
    )


@inlined
def _load_rows(layout: Any, rows: Any, start: int, width: int) -> tuple[Vector, Vector, Vector, Vector]:
    """The sixteen values from ``start`` on of four cells."""
    return (
        load_values(layout, rows[0], 0, start, width),
        load_values(layout, rows[1], 0, start, width),
        load_values(layout, rows[2], 0, start, width),
        load_values(layout, rows[3], 0, start, width),
    )


@inlined
def _add_products(sums: int, w: Any, v: Any) -> None:
    """``sums += w . v`` on one vector of a head's sums."""
    pair = fma(w[1], v[1], fma(w[0], v[0], load_f32(sums)))
    store_f32(sums, fma(w[3], v[3], fma(w[2], v[2], pair)))


@inlined
def _pv_1(layout: Any, rows: Any, width: int, weights: int, sums: int, stride: int) -> None:
    """``sums += weights[cell] * row``: four cells, one query head."""
    w = _load_weights(weights)
    for start in range(0, width, LANES):
        _add_products(sums + start * 4, w, _load_rows(layout, rows, start, width))


@inlined
def _pv_2(layout: Any, rows: Any, width: int, weights: int, sums: int, stride: int) -> None:
    """``sums += weights[cell] * row``: four cells, two query heads."""
    w, x = _load_weights(weights), _load_weights(weights + SCORE_STRIDE)
    for start in range(0, width, LANES):
        v = _load_rows(layout, rows, start, width)
        _add_products(sums + start * 4, w, v)
        _add_products(sums + stride + start * 4, x, v)


@inlined
def _pv_4(layout: Any, rows: Any, width: int, weights: int, sums: int, stride: int) -> None:
    """``sums += weights[cell] * row``: four cells, four query heads."""
    w, x = _load_weights(weights), _load_weights(weights + SCORE_STRIDE)
    y, z = _load_weights(weights + 2 * SCORE_STRIDE), _load_weights(weights + 3 * SCORE_STRIDE)
    for start in range(0, width, LANES):
        v = _load_rows(layout, rows, start, width)
        _add_products(sums + start * 4, w, v)
        _add_products(sums + stride + start * 4, x, v)
        _add_products(sums + 2 * stride + start * 4, y, v)
        _add_products(sums + 3 * stride + start * 4, z, v)


@inlined
def _add_weighted(layout: Any, values: int, begin: int, end: int, weights: int, sums: int, shape: Any) -> None:
    """See ``CellLayout.add_weighted``."""
    n_kv_heads, group, _, _, dv, wide_v = shape
    head_bytes, stride = layout.row_bytes(dv), wide_v * 4
    for cell in range(begin, end, 4):
        rows = four_rows(values, n_kv_heads * head_bytes, cell, end - 1)
        w = weights + (cell - begin) * 4
        for head in range(n_kv_heads):
            v = offset_rows(rows, head * head_bytes)
            prefetch_bytes(values + CELLS_PREFETCH + (cell * n_kv_heads + head * 4) * head_bytes, 4 * head_bytes)
            first = head * group
            if group == 1:
                _pv_1(layout, v, dv, w + first * SCORE_STRIDE, sums + first * stride, stride)
            elif group == 2:
                _pv_2(layout, v, dv, w + first * SCORE_STRIDE, sums + first * stride, stride)
            else:
                for query in range(first, first + group, 4):
                    _pv_4(layout, v, dv, w + query * SCORE_STRIDE, sums + query * stride, stride)


# --- the layouts

compiled_constant("value_bytes")


class PlainLayout(CellLayout):
    """Values of a floating-point type, one after the other."""

    value_bytes: int

    @override
    def row_bytes(self, width: int) -> int:
        return width * self.value_bytes

    @compiled
    def store(self, row: int, start: int, values: Vector) -> None:
        """Convert float32 values and write them at ``start .. start + 15`` of a row."""
        raise NotImplementedError

    @compiled
    def store_part(self, row: int, start: int, values: Vector, count: int) -> None:
        """Convert the first ``count < 16`` lanes and write them from ``start`` on."""
        raise NotImplementedError

    @override
    def scale_bytes(self, width: int) -> int:
        return 0

    @override
    def store_head(self, x: int, d: int, row: int, scales: int) -> None:
        for start in range(0, d, LANES):
            store_values(self, row, start, d, load_values(F32, x, 0, start, d))

    @override
    def qk_scratch_floats(self, n_kv_heads: int, d: int) -> int:
        return 0

    @override
    def put_query(self, source: int, d: int, wide: int, scale: float, out: int) -> None:
        for start in range(0, d, LANES):
            store_f32(out + start * 4, load_values(F32, source, 0, start, d) * splat(scale))

    @override
    def key_step(self) -> int:
        return LANES

    @override
    def load_key(self, row: int, scales: int, start: int, width: int) -> Any:
        return load_values(self, row, scales, start, width)

    @override
    def load_query(self, q: int, start: int) -> Any:
        return load_f32(q + start * 4)

    @override
    def add_product(self, key: Any, query: Any, sums: Vector) -> Vector:
        return fma(key, query, sums)

    @override
    def finish_scores(self, q: int, wide: int, scores: int, n: int) -> None:
        pass

    @override
    def pv_scratch_floats(self, n_kv_heads: int, n_heads: int, dv: int) -> int:
        return 0

    @override
    def add_weighted(
        self, values: int, scales: int, begin: int, end: int, weights: int, sums: int, scratch: int, shape: Any
    ) -> None:
        _add_weighted(self, values, begin, end, weights, sums, shape)


class F32Layout(PlainLayout):
    """float32."""

    label = "f32"
    value_bytes = 4

    @override
    def load(self, row: int, scales: int, start: int) -> Vector:
        return load_f32(row + start * 4)

    @override
    def load_part(self, row: int, scales: int, start: int, count: int) -> Vector:
        return load_f32_part(row + start * 4, count)

    @override
    def store(self, row: int, start: int, values: Vector) -> None:
        store_f32(row + start * 4, values)

    @override
    def store_part(self, row: int, start: int, values: Vector, count: int) -> None:
        store_f32_part(row + start * 4, values, count)


class F16Layout(PlainLayout):
    """float16."""

    label = "f16"
    value_bytes = 2

    @override
    def load(self, row: int, scales: int, start: int) -> Vector:
        return load_f16(row + start * 2)

    @override
    def load_part(self, row: int, scales: int, start: int, count: int) -> Vector:
        return load_f16_part(row + start * 2, count)

    @override
    def store(self, row: int, start: int, values: Vector) -> None:
        store_f16(row + start * 2, values)

    @override
    def store_part(self, row: int, start: int, values: Vector, count: int) -> None:
        store_f16_part(row + start * 2, values, count)


class BF16Layout(PlainLayout):
    """bfloat16."""

    label = "bf16"
    value_bytes = 2

    @override
    def load(self, row: int, scales: int, start: int) -> Vector:
        return load_bf16(row + start * 2)

    @override
    def load_part(self, row: int, scales: int, start: int, count: int) -> Vector:
        return load_bf16_part(row + start * 2, count)

    @compiled
    def load_bf16(self, row: int, start: int) -> Any:
        """Values ``start .. start + 31`` of a row, for ``simd/bf16``."""
        return load_bf16_pairs(row + start * 2)

    @override
    def store(self, row: int, start: int, values: Vector) -> None:
        store_bf16(row + start * 2, values)

    @override
    def store_part(self, row: int, start: int, values: Vector, count: int) -> None:
        store_bf16_part(row + start * 2, values, count)


F32, F16, BF16 = F32Layout(), F16Layout(), BF16Layout()
