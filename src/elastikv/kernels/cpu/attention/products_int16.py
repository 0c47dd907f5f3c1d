"""Prefill attention's products in integers of 16 bits: at twice float32's pace with VPDPWSSD, see ``features``.

They err by 0.03 % (relative rms). Sums of products must fit 32 bits, so

- the values of a query or key are scaled to at most 15 bits, and their norm to less than 2^15.5;
- weights are relative to the largest of 64 cells, which becomes 2^13;
- values are relative to the column's largest in a chunk, which becomes 4000: 64 products fit, and become float32 then.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from typing_extensions import override

from elastikv.kernels.cpu.attention.chunks import CHUNK, LOW, PANEL_BYTES, UNITS, Products, fill, padded
from elastikv.kernels.cpu.formats.layout import load_values
from elastikv.kernels.cpu.formats.plain import F32
from elastikv.kernels.cpu.jit import inlined
from elastikv.kernels.cpu.simd.math import absolute, fma, max_lanes, maximum, round_even, splat, sum_lanes, weight_of
from elastikv.kernels.cpu.simd.memory import load_f32, load_float, store_f32, store_float, store_i16
from elastikv.kernels.cpu.simd.panels import store_pairs, transpose_words
from elastikv.kernels.cpu.simd.vector import LANES, Scalar, Vector
from elastikv.kernels.cpu.simd.word_tile import ROWS, WIDE, add_sums_i16, scores_i16

BLOCK = 64
"""Cells whose weights have a unit in common."""

_LARGEST = np.float32(32767)
_LARGEST_NORM = np.float32(46300)  # squared it is 2^31, less what rounding may add
_LARGEST_WEIGHT = np.float32(1 << 13)
_LARGEST_VALUE = np.float32(4000)
_SEEN = np.float32(-1e29)
"""Below it, a maximum is of cells that are not seen."""
_SMALLEST_UNIT = np.float32(1e-20)
"""Not zero, which would make the scores of cells that are not seen like all others."""
_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)

_wide_scores, _narrow_scores = scores_i16(WIDE), scores_i16(1)
_add_wide_sums, _add_narrow_sums = add_sums_i16(WIDE), add_sums_i16(1)


@inlined
def _quantise_row(row: int, d: int, out: int) -> Scalar:
    """d float32 to int16; returns what one of these is worth."""
    tops, squares = splat(_ZERO), splat(_ZERO)
    for start in range(0, d, LANES):
        values = load_values(F32, row, 0, start, d)
        tops, squares = maximum(tops, absolute(values)), fma(values, values, squares)
    unit = max(max_lanes(tops) / _LARGEST, np.sqrt(sum_lanes(squares)) / _LARGEST_NORM, _SMALLEST_UNIT)
    inverse = splat(_ONE / unit)
    for start in range(0, d, LANES):
        store_i16(out + start * 2, round_even(load_values(F32, row, 0, start, d) * inverse))
    return unit


@inlined
def _pack_keys(layout: Any, rows: tuple[int, int, int, int], count: int, d: int, out: int, units: int) -> None:
    wide = padded((d + 1) // 2)
    values, words = np.zeros(padded(d), dtype=np.float32), np.zeros((LANES, 2 * wide), dtype=np.int16)
    store_f32(units, splat(_ZERO))
    for cell in range(count):
        row, scales = rows[0] + cell * rows[2], rows[1] + cell * rows[3]
        for start in range(0, d, LANES):
            store_f32(values.ctypes.data + start * 4, load_values(layout, row, scales, start, d))
        store_float(units + cell * 4, _quantise_row(values.ctypes.data, d, words.ctypes.data + cell * wide * 4))
    for word in range(0, wide, LANES):
        transpose_words(words.ctypes.data + word * 4, wide * 4, out + word * PANEL_BYTES)


@inlined
def _load(layout: Any, rows: tuple[int, int, int, int], cell: int, start: int, dv: int) -> Vector:
    return load_values(layout, rows[0] + cell * rows[2], rows[1] + cell * rows[3], start, dv)


@inlined
def _pack_values(
    layout: Any, rows: tuple[int, int, int, int], count: int, start: int, dv: int, out: int, units: int
) -> None:
    tops = splat(np.float32(1e-30))
    for cell in range(count):
        tops = maximum(tops, absolute(_load(layout, rows, cell, start, dv)))
    store_f32(units, tops * splat(_ONE / _LARGEST_VALUE))
    inverse = splat(_LARGEST_VALUE) / tops
    for cell in range(0, count, 2):
        first, second = _load(layout, rows, cell, start, dv), splat(_ZERO)
        if cell + 1 < count:
            second = _load(layout, rows, cell + 1, start, dv)
        store_pairs(out + cell // 2 * PANEL_BYTES, round_even(first * inverse), round_even(second * inverse))


@inlined
def _scores(queries: int, keys: int, units: int, d: int, panels: tuple[int, int], out: int) -> None:
    words = (d + 1) // 2
    stride, query_bytes = padded(words) * PANEL_BYTES, padded(d) * 4
    panel, end = panels
    while panel + WIDE <= end:
        place, offset = keys + panel * stride, panel * PANEL_BYTES
        _wide_scores(queries, query_bytes, place, stride, words, out + offset, CHUNK * 4, units + offset, 0)
        panel += WIDE
    while panel < end:
        place, offset = keys + panel * stride, panel * PANEL_BYTES
        _narrow_scores(queries, query_bytes, place, stride, words, out + offset, CHUNK * 4, units + offset, 0)
        panel += 1


@inlined
def _softmax(
    row: int, weights: int, units: int, cells: tuple[int, int], factor: Scalar, before: Scalar
) -> tuple[Scalar, Scalar, Scalar]:
    """units: of each block's weights; behind them, the blocks' maxima. Both have ``before``'s in the last place."""
    begin, end = cells
    maxima, last = units + LANES * 4, (LANES - 1) * 4
    store_f32(maxima, splat(LOW))
    store_float(maxima + last, before)
    top, blocks = before, range(begin // BLOCK, (end + BLOCK - 1) // BLOCK)
    for block in blocks:
        tops = splat(LOW)
        for cell in range(max(begin, block * BLOCK), min(end, (block + 1) * BLOCK), LANES):
            tops = maximum(tops, load_f32(row + cell * 4))
        highest = max_lanes(tops)
        if highest > _SEEN:
            store_float(maxima + block * 4, highest * factor)
            top = max(top, highest * factor)
    store_f32(units, weight_of(load_f32(maxima) - splat(top)) * splat(_ONE / _LARGEST_WEIGHT))
    slope, total = splat(factor), splat(_ZERO)
    for block in blocks:
        unit, base = splat(load_float(units + block * 4)), splat(-load_float(maxima + block * 4))
        start, stop = max(begin, block * BLOCK), min(end, (block + 1) * BLOCK)
        if load_float(units + block * 4) == 0:
            fill(weights + start * 2, 0, (stop - start) // 2, _ZERO)
        else:
            for cell in range(start, stop, LANES):
                weight = weight_of(fma(load_f32(row + cell * 4), slope, base)) * splat(_LARGEST_WEIGHT)
                store_i16(weights + cell * 2, weight + splat(_HALF))
                total = fma(weight, unit, total)
    return top, load_float(units + last) * _LARGEST_WEIGHT, sum_lanes(total)


@inlined
def _sum_values(weights: int, units: int, values: int, cells: tuple[int, int], dv: int, out: int) -> None:
    wide = padded(dv)
    fill(out, 0, ROWS * wide, _ZERO)
    stride, n_panels = CHUNK // 2 * PANEL_BYTES, wide // LANES
    for block in range(cells[0] // BLOCK, (cells[1] + BLOCK - 1) // BLOCK):
        begin, end = max(cells[0], block * BLOCK) // 2, (min(cells[1], (block + 1) * BLOCK) + 1) // 2
        a, unit, first = weights + begin * 4, units + block * 4, values + begin * PANEL_BYTES
        panel = 0
        while panel + WIDE <= n_panels:
            place, offset = first + panel * stride, panel * PANEL_BYTES
            _add_wide_sums(a, CHUNK * 2, place, stride, end - begin, out + offset, wide * 4, unit, UNITS * 4)
            panel += WIDE
        while panel < n_panels:
            place, offset = first + panel * stride, panel * PANEL_BYTES
            _add_narrow_sums(a, CHUNK * 2, place, stride, end - begin, out + offset, wide * 4, unit, UNITS * 4)
            panel += 1


class Int16Products(Products):
    """Words are pairs of int16."""

    label = "products in int16"
    weight_bytes = 2

    @override
    def key_words(self, d: int) -> int:
        return (d + 1) // 2

    @override
    def pack_keys(self, layout: Any, rows: tuple[int, int, int, int], count: int, d: int, out: int, units: int) -> None:
        _pack_keys(layout, rows, count, d, out, units)

    @override
    def pack_values(
        self, layout: Any, rows: tuple[int, int, int, int], count: int, start: int, dv: int, out: int, units: int
    ) -> None:
        _pack_values(layout, rows, count, start, dv, out, units)

    @override
    def write_query(self, source: int, d: int, out: int) -> Scalar:
        return _quantise_row(source, d, out)

    @override
    def scores(self, queries: int, keys: int, units: int, d: int, panels: tuple[int, int], out: int) -> None:
        _scores(queries, keys, units, d, panels, out)

    @override
    def softmax(
        self, row: int, weights: int, units: int, cells: tuple[int, int], factor: Scalar, before: Scalar
    ) -> tuple[Scalar, Scalar, Scalar]:
        return _softmax(row, weights, units, cells, factor, before)

    @override
    def sum_values(self, weights: int, units: int, values: int, cells: tuple[int, int], dv: int, out: int) -> None:
        _sum_values(weights, units, values, cells, dv, out)


INT16_PRODUCTS = Int16Products()
