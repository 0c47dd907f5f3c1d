"""q8_0 cells: int8 values, and apart from them a float16 scale for every 32. Scores and sums are products of integers.

QK: queries are quantised to 16 bits, which errs by at most 2^-16 of the head's largest value.

PV: a cell's weight times its block's scale is quantised to 16 bits, relative to the largest of 64 cells. Then one
instruction multiplies and adds two cells' values, and eight cells' sums become float32 at a time. Its scratch, for each
block of 32 values: per K head 64 scales in float16; per query head 64 weights in int16, and what one of these is worth
in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from typing_extensions import override

from elastikv.kernels.cpu.formats.cells import BLOCK_CELLS, CELLS_PREFETCH, SCORE_STRIDE, CellLayout
from elastikv.kernels.cpu.formats.layout import load_values
from elastikv.kernels.cpu.formats.plain import F32
from elastikv.kernels.cpu.jit import inlined
from elastikv.kernels.cpu.simd.int16 import (
    add_dots,
    interleave_high,
    interleave_low,
    load_i8_block,
    load_i16,
    splat_i16_pair,
    to_float,
    zero_sums,
)
from elastikv.kernels.cpu.simd.math import absolute, fma, max_lanes, maximum, round_even, splat
from elastikv.kernels.cpu.simd.memory import (
    copy_half,
    load_f16,
    load_f32,
    load_float,
    load_half,
    load_i8,
    load_i8_part,
    store_f32,
    store_float,
    store_half,
    store_i8,
    store_i8_part,
    store_i16,
)
from elastikv.kernels.cpu.simd.rows import four_rows, offset_rows, prefetch_bytes
from elastikv.kernels.cpu.simd.vector import LANES, Int16Vector, Int32Vector, Scalar, Vector

BLOCK = 32
"""Values that share a scale."""

_ROW = BLOCK_CELLS * 2
"""Bytes of 64 scales, or of 64 weights."""
_LARGEST = np.float32(32767)
_ZERO = np.float32(0)


@inlined
def _largest(x: int, count: int) -> Scalar:
    """The largest magnitude of ``count`` float32."""
    tops = splat(_ZERO)
    for start in range(0, count, LANES):
        tops = maximum(tops, absolute(load_values(F32, x, 0, start, count)))
    return max_lanes(tops)


@inlined
def _quantise_block(x: int, count: int, row: int, scale: int) -> None:
    """Up to 32 values as int8 ``round(x / d)`` with ``d = max|x| / 127`` as float16."""
    step = _largest(x, count) / np.float32(127)
    inverse = np.float32(1) / step if step > 0 else np.float32(0)
    store_half(scale, step)
    for start in range(0, count, LANES):
        rounded = round_even(load_values(F32, x, 0, start, count) * splat(inverse))
        if start + LANES <= count:
            store_i8(row + start, rounded)
        else:
            store_i8_part(row + start, rounded, count - start)


# --- sums of V


@inlined
def _transpose_scales(scales: int, n: int, begin: int, end: int, out: int) -> None:
    """``[cell, n]`` of cells ``begin..end`` as ``[n, 64]``. Behind them the last is repeated: weights are 0 there."""
    for cell in range(BLOCK_CELLS):
        source = scales + min(begin + cell, end - 1) * n * 2
        for index in range(n):
            copy_half(source + index * 2, out + index * _ROW + cell * 2)


@inlined
def _quantise_weights(weights: int, scales: int, out: int, unit: int) -> None:
    """64 weights times their scales as int16, and what one of these is worth."""
    a, b = load_f32(weights) * load_f16(scales), load_f32(weights + 64) * load_f16(scales + 32)
    c, d = load_f32(weights + 128) * load_f16(scales + 64), load_f32(weights + 192) * load_f16(scales + 96)
    top = max_lanes(maximum(maximum(a, b), maximum(c, d)))
    inverse = splat(_LARGEST / top if top > 0 else _ZERO)
    store_i16(out, round_even(a * inverse))
    store_i16(out + 32, round_even(b * inverse))
    store_i16(out + 64, round_even(c * inverse))
    store_i16(out + 96, round_even(d * inverse))
    store_float(unit, top / _LARGEST)


@inlined
def _load_paired(rows: Any, start: int, width: int) -> tuple[Int16Vector, Int16Vector, Int16Vector, Int16Vector]:
    """A block of four cells: values of cells 0 and 1 side by side, low half and high half, then of 2 and 3."""
    a, b = load_i8_block(rows[0], start, width), load_i8_block(rows[1], start, width)
    c, d = load_i8_block(rows[2], start, width), load_i8_block(rows[3], start, width)
    return (interleave_low(a, b), interleave_high(a, b), interleave_low(c, d), interleave_high(c, d))


@inlined
def _add_block(pairs: Any, weights: int, low: Int32Vector, high: Int32Vector) -> tuple[Int32Vector, Int32Vector]:
    """``low`` and ``high`` plus a block of four cells times their weights."""
    w, x = splat_i16_pair(weights), splat_i16_pair(weights + 4)
    low = add_dots(pairs[2], x, add_dots(pairs[0], w, low))
    high = add_dots(pairs[3], x, add_dots(pairs[1], w, high))
    return low, high


@inlined
def _add_scaled(sums: int, products: Int32Vector, unit: float) -> None:
    store_f32(sums, fma(to_float(products), splat(unit), load_f32(sums)))


@inlined
def _add_weighted(
    values: int, scales: int, begin: int, end: int, weights: int, sums: int, scratch: int, shape: Any
) -> None:
    """See ``CellLayout.add_weighted``."""
    n_kv_heads, group, _, _, dv, wide_v = shape
    blocks = (dv + BLOCK - 1) // BLOCK
    quantised = scratch + n_kv_heads * blocks * _ROW
    units = quantised + n_kv_heads * group * blocks * _ROW
    _transpose_scales(scales, n_kv_heads * blocks, begin, end, scratch)
    for query in range(n_kv_heads * group):
        for block in range(blocks):
            row_scales, index = scratch + (query // group * blocks + block) * _ROW, query * blocks + block
            _quantise_weights(weights + query * SCORE_STRIDE, row_scales, quantised + index * _ROW, units + index * 4)
    cell_bytes = n_kv_heads * dv
    for cell in range(begin, end, 8):
        first = four_rows(values, cell_bytes, cell, end - 1)
        second = four_rows(values, cell_bytes, cell + 4, end - 1)
        for head in range(n_kv_heads):
            prefetch_bytes(values + CELLS_PREFETCH + cell * cell_bytes + head * 8 * dv, 8 * dv)
            for block in range(blocks):
                start = block * BLOCK
                a = _load_paired(offset_rows(first, head * dv), start, dv)
                b = _load_paired(offset_rows(second, head * dv), start, dv)
                for query in range(head * group, (head + 1) * group):
                    index = query * blocks + block
                    w = quantised + index * _ROW + (cell - begin) * 2
                    low, high = _add_block(a, w, zero_sums(), zero_sums())
                    low, high = _add_block(b, w + 8, low, high)
                    unit, target = load_float(units + index * 4), sums + (query * wide_v + start) * 4
                    _add_scaled(target, low, unit)
                    _add_scaled(target + 64, high, unit)


# --- the layout


class Q8_0Layout(CellLayout):  # noqa: N801
    """A row's values are int8, its scales float16."""

    label = "q8_0"

    @override
    def row_bytes(self, width: int) -> int:
        return width * 1

    @override
    def scale_bytes(self, width: int) -> int:
        return (width + BLOCK - 1) // BLOCK * 2

    @override
    def load(self, row: int, scales: int, start: int) -> Vector:
        return load_i8(row + start) * splat(load_half(scales + start // BLOCK * 2))

    @override
    def load_part(self, row: int, scales: int, start: int, count: int) -> Vector:
        return load_i8_part(row + start, count) * splat(load_half(scales + start // BLOCK * 2))

    @override
    def store_head(self, x: int, d: int, row: int, scales: int) -> None:
        for start in range(0, d, BLOCK):
            _quantise_block(x + start * 4, min(d - start, BLOCK), row + start, scales + start // BLOCK * 2)

    @override
    def qk_scratch_floats(self, n_kv_heads: int, d: int) -> int:
        """Four cells' scales, in whole vectors."""
        return 4 * n_kv_heads * ((d + BLOCK - 1) // BLOCK) + LANES

    @override
    def put_query(self, source: int, d: int, wide: int, scale: float, out: int) -> None:
        """int16 values, and behind them what they are to be multiplied by."""
        top = _largest(source, d)
        inverse = splat(_LARGEST / top if top > 0 else _ZERO)
        for start in range(0, d, LANES):
            store_i16(out + start * 2, round_even(load_values(F32, source, 0, start, d) * inverse))
        store_float(out + wide * 2, top / _LARGEST * scale)

    @override
    def key_step(self) -> int:
        return BLOCK

    @override
    def load_key(self, row: int, scales: int, start: int, width: int) -> Any:
        scale = splat(load_float(scales + start // BLOCK * 4))
        return load_i8_block(row, start, width), scale

    @override
    def load_query(self, q: int, start: int) -> Any:
        return load_i16(q + start * 2)

    @override
    def add_product(self, key: Any, query: Any, sums: Vector) -> Vector:
        values, scale = key
        return fma(to_float(add_dots(values, query, zero_sums())), scale, sums)

    @override
    def finish_scores(self, q: int, wide: int, scores: int, n: int) -> None:
        factor = splat(load_float(q + wide * 2))
        for start in range(0, n, LANES):
            store_f32(scores + start * 4, load_f32(scores + start * 4) * factor)

    @override
    def pv_scratch_floats(self, n_kv_heads: int, n_heads: int, dv: int) -> int:
        return (dv + BLOCK - 1) // BLOCK * (n_kv_heads * BLOCK_CELLS // 2 + n_heads * (BLOCK_CELLS // 2 + 1))

    @override
    def add_weighted(
        self, values: int, scales: int, begin: int, end: int, weights: int, sums: int, scratch: int, shape: Any
    ) -> None:
        _add_weighted(values, scales, begin, end, weights, sums, scratch, shape)


Q8_0 = Q8_0Layout()
