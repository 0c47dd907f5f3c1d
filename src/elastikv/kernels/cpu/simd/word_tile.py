"""The register tile of prefill attention: a few rows times panels of sixteen columns, summed up over words of 4 bytes.

A word is a float32, or two neighbouring int16. A panel holds sixteen columns: for each word of the sum, the sixteen
columns' words next to each other.

    out[row][column] = sum over words of a[row][word] * panels[word][column]

Three forms: ``products_f32``; ``scores_i16``, which multiplies the int32 sums with a scale per column; and
``add_sums_i16``, which multiplies them with a scale per row and adds them to what is there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from elastikv.kernels.cpu.simd.features import has
from elastikv.kernels.cpu.simd.int16 import dots_of_pairs
from elastikv.kernels.cpu.simd.vector import (
    F32,
    I32,
    LANES,
    F32x16,
    I16x32,
    I32x16,
    call_intrinsic,
    operation,
    pointer,
    splat_value,
)

ROWS = 6
"""Rows of a tile."""

WIDE = 4 if has("avx512f") else 1
"""Panels of the wider tile: as many as all sums fit the registers for, with 512 bits or with half of that. The
narrower one has a single panel."""

_Cell = tuple[int, int]
_Finish = Callable[["_Tile", _Cell, ir.Value], None]


class _Tile:
    """Writes the code of one tile. out, scales: addresses, with bytes between rows."""

    def __init__(self, builder: ir.IRBuilder, width: int, values: tuple[ir.Value, ...]) -> None:
        self.builder = builder
        self._a, self._a_stride, self._panels, self._panel_stride, self._n_words = values[:5]
        self.out, self.out_stride, self.scales, self.scales_stride = values[5:]
        self._width = width
        self._cells = [(row, panel) for row in range(ROWS) for panel in range(width)]

    def accumulate(self, word: ir.Type, sums: ir.VectorType, add: Callable[..., ir.Value]) -> dict[_Cell, ir.Value]:
        """The sums by row and panel. word: the type of a word of a; add: ``add(builder, word, words, sums)``."""
        builder = self.builder
        places = {cell: cgutils.alloca_once(builder, sums) for cell in self._cells}
        for place in places.values():
            builder.store(ir.Constant(sums, None), place)
        rows = [self.behind(self._a, row, self._a_stride) for row in range(ROWS)]
        panels = [self.behind(self._panels, panel, self._panel_stride) for panel in range(self._width)]
        with cgutils.for_range(builder, self._n_words) as loop:
            at_a = builder.mul(loop.index, ir.Constant(loop.index.type, 4))
            at_panel = builder.mul(loop.index, ir.Constant(loop.index.type, 64))
            words = [self.load(builder.add(panel, at_panel), sums) for panel in panels]
            for row in range(ROWS):
                value = splat_value(builder, self.load(builder.add(rows[row], at_a), word))
                for panel in range(self._width):
                    place = places[row, panel]
                    builder.store(add(builder, value, words[panel], builder.load(place)), place)
        return {cell: builder.load(place) for cell, place in places.items()}

    def behind(self, base: ir.Value, index: int, stride: ir.Value) -> ir.Value:
        """An address ``index`` strides behind another."""
        return self.builder.add(base, self.builder.mul(stride, ir.Constant(stride.type, index)))

    def of_panel(self, base: ir.Value, panel: int) -> ir.Value:
        """The address of a panel's sixteen float32 in a row."""
        return self.builder.add(base, ir.Constant(base.type, panel * LANES * 4))

    def load(self, address: ir.Value, typ: ir.Type) -> ir.Value:
        return self.builder.load(pointer(self.builder, address), align=1, typ=typ)

    def out_of(self, cell: _Cell) -> ir.Value:
        """Where a panel's columns of a row go."""
        return self.of_panel(self.behind(self.out, cell[0], self.out_stride), cell[1])

    def store(self, cell: _Cell, value: ir.Value) -> None:
        self.builder.store(value, pointer(self.builder, self.out_of(cell)), align=1)


def _fma(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    return call_intrinsic(builder, f"llvm.fma.v{LANES}f32", F32x16, [a, b, c])


def _add_dots(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, sums: ir.Value) -> ir.Value:
    """LLVM makes one instruction of both where there is one."""
    pairs = (builder.bitcast(each, I16x32) for each in (a, b))
    return builder.add(dots_of_pairs(builder, *pairs), sums)


def _store_scaled(tile: _Tile, cell: _Cell, sums: ir.Value) -> None:
    scales = tile.load(tile.of_panel(tile.scales, cell[1]), F32x16)
    tile.store(cell, tile.builder.fmul(tile.builder.sitofp(sums, F32x16), scales))


def _add_scaled(tile: _Tile, cell: _Cell, sums: ir.Value) -> None:
    scale = splat_value(tile.builder, tile.load(tile.behind(tile.scales, cell[0], tile.scales_stride), F32))
    before = tile.load(tile.out_of(cell), F32x16)
    tile.store(cell, _fma(tile.builder, tile.builder.sitofp(sums, F32x16), scale, before))


def _operation(width: int, word: ir.Type, sums: ir.VectorType, add: Callable[..., ir.Value], finish: _Finish) -> Any:
    @operation(types.void, *[types.intp] * 9)
    def multiply(builder: ir.IRBuilder, *values: ir.Value) -> None:
        tile = _Tile(builder, width, values)
        for cell, total in tile.accumulate(word, sums, add).items():
            finish(tile, cell, total)

    return multiply


# All take ``(a, a_stride, panels, panel_stride, n_words, out, out_stride, scales, scales_stride)``.


@functools.cache
def products_f32(width: int) -> Any:
    """``width`` panels of float32; scales are ignored."""
    return _operation(width, F32, F32x16, _fma, _Tile.store)


@functools.cache
def scores_i16(width: int) -> Any:
    """``width`` panels of int16; scales: a float32 per column."""
    return _operation(width, I32, I32x16, _add_dots, _store_scaled)


@functools.cache
def add_sums_i16(width: int) -> Any:
    """``width`` panels of int16, added to out; scales: a float32 per row."""
    return _operation(width, I32, I32x16, _add_dots, _add_scaled)
