"""The register tile of integer products: a panel's rows times a few rows of x, in blocks of 32.

x is int8, a few rows together, block by block. A block of ``width`` rows is

    32 width bytes   each row's values
     4 width bytes   float32, each row's scale
     4 width bytes   each row's start: int32 ``-bias`` times the sum of its values, or this sum itself as float32 where
                     ``PanelFormat.scales`` is "minimum"; for "halves" of its lower sixteen values
     4 width bytes   for "halves" only: of its upper sixteen

Sums are int32 within a block, and float32 from block to block. They do not depend on the width: a row of x gives the
same bits whatever is beside it.
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from elastikv.kernels.cpu.simd.byte_products import ByteProducts, I8x64
from elastikv.kernels.cpu.simd.int8_panel import BLOCK, GROUPS, PanelFormat
from elastikv.kernels.cpu.simd.vector import (
    F32,
    I32,
    LANES,
    F32x16,
    I32x16,
    call_intrinsic,
    operation,
    pointer,
    splat_value,
)

WIDTHS = (2, 4)
"""Rows of x that a tile may have: all sums of the wider one fit the registers, those of the other cost little more."""

_WORDS = BLOCK // 4


class _Tile:
    """Writes the code of one block; sums: pointers to float32 vectors, by group, then by row of x."""

    def __init__(self, builder: ir.IRBuilder, panel: PanelFormat, width: int) -> None:
        self._builder = builder
        self._panel = panel
        self._width = width
        self._cells = [(group, member) for group in range(GROUPS) for member in range(width)]
        self.sums = {cell: cgutils.alloca_once(builder, F32x16) for cell in self._cells}

    def add_block(self, weights: ir.Value, x: ir.Value) -> None:
        """weights, x: addresses of the block."""
        self._weights, self._x = weights, x
        if self._panel.scales == "halves":
            low = self._products(range(_WORDS // 2), 0)
            low = self._scaled(low, 16 * BLOCK)
            products = self._scaled(self._products(range(_WORDS // 2, _WORDS), 1), 16 * BLOCK + 64, low)
        elif self._panel.scales == "minimum":
            products = self._scaled(self._products(range(_WORDS)), 16 * BLOCK, self._minima())
        else:
            products = self._scaled(self._products(range(_WORDS), 0), 16 * BLOCK)
        scales = [self._of_x(BLOCK * self._width + 4 * member, F32) for member in range(self._width)]
        for cell in self._cells:
            place = self.sums[cell]
            self._builder.store(self._fma(products[cell], scales[cell[1]], self._builder.load(place)), place)

    def _products(self, words: range, start: int | None = None) -> dict[tuple[int, int], ir.Value]:
        """int32 sums over some words of the block as float32. start: which of the numbers that sums start from."""
        products = ByteProducts(self._builder, self._panel.highest)
        sums = dict.fromkeys(self._cells, ir.Constant(I32x16, None))
        if start is not None and self._panel.bias:
            starts = [self._start(member, start, I32) for member in range(self._width)]
            sums = {cell: starts[cell[1]] for cell in self._cells}
        for first in range(words.start, words.stop, products.at_once):
            some = range(first, min(first + products.at_once, words.stop))
            partial: dict[tuple[int, int], ir.Value] = {}
            for word in some:
                weights = [self._of_weights(group, 64 * word, I8x64) for group in range(GROUPS)]
                for member in range(self._width):
                    x = self._builder.bitcast(self._of_x(BLOCK * member + 4 * word, I32), I8x64)
                    for group in range(GROUPS):
                        cell = group, member
                        partial[cell] = products.add(weights[group], x, partial.get(cell), sums[cell])
            sums = {cell: products.total(partial[cell], sums[cell]) for cell in self._cells}
        return {cell: self._builder.sitofp(value, F32x16) for cell, value in sums.items()}

    def _scaled(
        self,
        products: dict[tuple[int, int], ir.Value],
        offset: int,
        more: dict[tuple[int, int], ir.Value] | None = None,
    ) -> dict[tuple[int, int], ir.Value]:
        """Times the rows' scales that lie at an offset."""
        scales = [self._of_weights(group, offset, F32x16) for group in range(GROUPS)]
        if more is None:
            return {cell: self._builder.fmul(value, scales[cell[0]]) for cell, value in products.items()}
        return {cell: self._fma(value, scales[cell[0]], more[cell]) for cell, value in products.items()}

    def _minima(self) -> dict[tuple[int, int], ir.Value]:
        minima = [self._of_weights(group, 16 * BLOCK + 64, F32x16) for group in range(GROUPS)]
        sums_of_x = [self._start(member, 0, F32) for member in range(self._width)]
        return {cell: self._builder.fmul(minima[cell[0]], sums_of_x[cell[1]]) for cell in self._cells}

    def _of_weights(self, group: int, offset: int, typ: ir.Type) -> ir.Value:
        return self._load(self._weights, group * self._panel.block_bytes + offset, typ)

    def _of_x(self, offset: int, typ: ir.Type) -> ir.Value:
        return splat_value(self._builder, self._load(self._x, offset, typ))

    def _start(self, member: int, index: int, typ: ir.Type) -> ir.Value:
        return self._of_x((BLOCK + 4 + 4 * index) * self._width + 4 * member, typ)

    def _load(self, address: ir.Value, offset: int, typ: ir.Type) -> ir.Value:
        place = self._builder.add(address, ir.Constant(address.type, offset))
        return self._builder.load(pointer(self._builder, place), align=1, typ=typ)

    def _fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        return call_intrinsic(self._builder, f"llvm.fma.v{LANES}f32", F32x16, [a, b, c])


@functools.cache
def tile(panel: PanelFormat, width: int) -> Any:
    """``multiply(weights, x, n_blocks, start, start_stride, out, out_stride)`` for a number of rows of x.

    All but n_blocks and strides are addresses. start: what is added, float32 ``[width, PANEL_ROWS]`` as is out.
    """

    @operation(types.void, *[types.intp] * 7)
    def multiply(
        builder: ir.IRBuilder,
        weights: ir.Value,
        x: ir.Value,
        n_blocks: ir.Value,
        start: ir.Value,
        start_stride: ir.Value,
        out: ir.Value,
        out_stride: ir.Value,
    ) -> None:
        def row_of(base: ir.Value, stride: ir.Value, cell: tuple[int, int]) -> ir.Value:
            row = builder.add(base, builder.mul(stride, ir.Constant(base.type, cell[1])))
            return pointer(builder, builder.add(row, ir.Constant(base.type, cell[0] * LANES * 4)))

        code = _Tile(builder, panel, width)
        for cell, place in code.sums.items():
            builder.store(builder.load(row_of(start, start_stride, cell), align=1, typ=F32x16), place)
        with cgutils.for_range(builder, n_blocks) as loop:
            strides = (GROUPS * panel.block_bytes, width * panel.token_bytes)
            places = (
                builder.add(base, builder.mul(loop.index, ir.Constant(base.type, stride)))
                for base, stride in zip((weights, x), strides, strict=True)
            )
            code.add_block(*places)
        for cell, place in code.sums.items():
            builder.store(builder.load(place), row_of(out, out_stride, cell), align=1)

    return multiply
