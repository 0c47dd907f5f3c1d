"""Prefill attention's products in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from typing_extensions import override

from elastikv.kernels.cpu.attention.chunks import CHUNK, LOW, PANEL_BYTES, Products, padded
from elastikv.kernels.cpu.formats.layout import load_values
from elastikv.kernels.cpu.formats.plain import F32
from elastikv.kernels.cpu.jit import inlined
from elastikv.kernels.cpu.simd.math import fma, max_lanes, maximum, splat, sum_lanes, weight_of
from elastikv.kernels.cpu.simd.memory import load_f32, store_f32
from elastikv.kernels.cpu.simd.panels import transpose_words
from elastikv.kernels.cpu.simd.vector import LANES, Scalar
from elastikv.kernels.cpu.simd.word_tile import WIDE, products_f32

_ROW = CHUNK * 4
"""Bytes of a row's scores, and of its weights."""

_multiply_wide, _multiply_narrow = products_f32(WIDE), products_f32(1)


@inlined
def _multiply(
    a: int, a_stride: int, panels: int, panel_stride: int, n_panels: int, n_words: int, out: int, out_stride: int
) -> None:
    panel = 0
    while panel + WIDE <= n_panels:
        place = panels + panel * panel_stride
        _multiply_wide(a, a_stride, place, panel_stride, n_words, out + panel * PANEL_BYTES, out_stride, 0, 0)
        panel += WIDE
    while panel < n_panels:
        place = panels + panel * panel_stride
        _multiply_narrow(a, a_stride, place, panel_stride, n_words, out + panel * PANEL_BYTES, out_stride, 0, 0)
        panel += 1


@inlined
def _pack_keys(layout: Any, rows: tuple[int, int, int, int], count: int, d: int, out: int) -> None:
    wide = padded(d)
    buffer = np.zeros((LANES, wide), dtype=np.float32)
    for cell in range(count):
        row, scales = rows[0] + cell * rows[2], rows[1] + cell * rows[3]
        for start in range(0, d, LANES):
            values = load_values(layout, row, scales, start, d)
            store_f32(buffer.ctypes.data + (cell * wide + start) * 4, values)
    for word in range(0, wide, LANES):
        transpose_words(buffer.ctypes.data + word * 4, wide * 4, out + word * PANEL_BYTES)


@inlined
def _softmax(
    row: int, weights: int, cells: tuple[int, int], factor: Scalar, before: Scalar
) -> tuple[Scalar, Scalar, Scalar]:
    tops = splat(LOW)
    for cell in range(cells[0], cells[1], LANES):
        tops = maximum(tops, load_f32(row + cell * 4))
    top = max(before, max_lanes(tops) * factor)
    slope, base, total = splat(factor), splat(-top), splat(np.float32(0))
    for cell in range(cells[0], cells[1], LANES):
        weight = weight_of(fma(load_f32(row + cell * 4), slope, base))
        store_f32(weights + cell * 4, weight)
        total = total + weight
    return top, max_lanes(weight_of(splat(before - top))), sum_lanes(total)


class F32Products(Products):
    """Words are float32."""

    label = "products in float32"
    weight_bytes = 4

    @override
    def key_words(self, d: int) -> int:
        return d * 1

    @override
    def pack_keys(self, layout: Any, rows: tuple[int, int, int, int], count: int, d: int, out: int, units: int) -> None:
        _pack_keys(layout, rows, count, d, out)

    @override
    def pack_values(
        self, layout: Any, rows: tuple[int, int, int, int], count: int, start: int, dv: int, out: int, units: int
    ) -> None:
        for cell in range(count):
            values = load_values(layout, rows[0] + cell * rows[2], rows[1] + cell * rows[3], start, dv)
            store_f32(out + cell * PANEL_BYTES, values)
        store_f32(units, splat(np.float32(1)))

    @override
    def write_query(self, source: int, d: int, out: int) -> Scalar:
        for start in range(0, d, LANES):
            store_f32(out + start * 4, load_values(F32, source, 0, start, d))
        return np.float32(1)

    @override
    def scores(self, queries: int, keys: int, units: int, d: int, panels: tuple[int, int], out: int) -> None:
        begin, end = panels
        stride = padded(d) * PANEL_BYTES
        place = keys + begin * stride
        _multiply(queries, padded(d) * 4, place, stride, end - begin, d, out + begin * PANEL_BYTES, _ROW)

    @override
    def softmax(
        self, row: int, weights: int, units: int, cells: tuple[int, int], factor: Scalar, before: Scalar
    ) -> tuple[Scalar, Scalar, Scalar]:
        return _softmax(row, weights, cells, factor, before)

    @override
    def sum_values(self, weights: int, units: int, values: int, cells: tuple[int, int], dv: int, out: int) -> None:
        begin, end = cells
        place, wide = values + begin * PANEL_BYTES, padded(dv)
        _multiply(weights + begin * 4, _ROW, place, CHUNK * PANEL_BYTES, wide // LANES, end - begin, out, wide * 4)


F32_PRODUCTS = F32Products()
