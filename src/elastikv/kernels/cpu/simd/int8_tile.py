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
from elastikv.kernels.cpu.simd.features import has
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

_IN_REGISTERS = has("avx512bw")
"""Whether float32 sums stay in registers from block to block. With AVX2's sixteen those of one block need the room."""


class _Tile:
    """Writes the code of one block; sums: where the cells' float32 are. A cell: a group of weights, and a row of x."""

    def __init__(
        self, builder: ir.IRBuilder, panel: PanelFormat, width: int, sums: dict[tuple[int, int], ir.Value]
    ) -> None:
        self._builder = builder
        self._panel = panel
        self._width = width
        self._sums = sums

    def add_block(self, weights: ir.Value, x: ir.Value) -> None:
        """weights, x: addresses of the block."""
        self._weights, self._x = weights, x
        middle = _WORDS // 2 if self._panel.scales == "halves" else _WORDS
        sums = self._products(range(middle), 0)
        lower = {cell: self._scaled(cell, value) for cell, value in sums.items()}
        if self._panel.scales == "halves":
            sums = self._products(range(middle, _WORDS), 1)
        for cell, place in self._sums.items():  # one after the other: there are few registers
            products = lower[cell]
            if self._panel.scales == "halves":
                upper = self._builder.sitofp(sums[cell], F32x16)
                products = self._fma(upper, self._of_weights(cell[0], 16 * BLOCK + 64, F32x16), products)
            scale = self._of_x(BLOCK * self._width + 4 * cell[1], F32)
            total = self._fma(products, scale, self._builder.load(place, align=1, typ=F32x16))
            self._builder.store(total, place, align=1)

    def _products(self, words: range, start: int) -> dict[tuple[int, int], ir.Value]:
        """int32 sums over some words of the block. start: which of the numbers of x these start from, if from any."""
        products = ByteProducts(self._builder, self._panel.highest)
        sums = dict.fromkeys(self._sums, ir.Constant(I32x16, None))
        if self._panel.bias:
            starts = [self._start(member, start, I32) for member in range(self._width)]
            sums = {cell: starts[cell[1]] for cell in self._sums}
        partial: dict[tuple[int, int], ir.Value] = {}
        for count, word in enumerate(words, 1):
            weights = [self._of_weights(group, 64 * word, I8x64) for group in range(GROUPS)]
            for member in range(self._width):
                x = self._builder.bitcast(self._of_x(BLOCK * member + 4 * word, I32), I8x64)
                for group in range(GROUPS):
                    cell = group, member
                    partial[cell] = products.add(weights[group], x, partial.get(cell), sums[cell])
                    if count % products.at_once == 0 or count == len(words):
                        sums[cell] = products.total(partial.pop(cell), sums[cell])
        return sums

    def _scaled(self, cell: tuple[int, int], sums: ir.Value) -> ir.Value:
        """Times the rows' scales, and plus their minima."""
        group, member = cell
        values, scales = self._builder.sitofp(sums, F32x16), self._of_weights(group, 16 * BLOCK, F32x16)
        if self._panel.scales != "minimum":
            return self._builder.fmul(values, scales)
        minima = self._builder.fmul(self._of_weights(group, 16 * BLOCK + 64, F32x16), self._start(member, 0, F32))
        return self._fma(values, scales, minima)

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

        def load(place: ir.Value) -> ir.Value:
            return builder.load(place, align=1, typ=F32x16)

        def store(value: ir.Value, place: ir.Value) -> None:
            builder.store(value, place, align=1)

        cells = [(group, member) for group in range(GROUPS) for member in range(width)]
        results = {cell: row_of(out, out_stride, cell) for cell in cells}
        sums = {cell: cgutils.alloca_once(builder, F32x16) for cell in cells} if _IN_REGISTERS else results
        for cell, place in sums.items():
            store(load(row_of(start, start_stride, cell)), place)
        code = _Tile(builder, panel, width, sums)
        with cgutils.for_range(builder, n_blocks) as loop:
            strides = (GROUPS * panel.block_bytes, width * panel.token_bytes)
            places = (
                builder.add(base, builder.mul(loop.index, ir.Constant(base.type, stride)))
                for base, stride in zip((weights, x), strides, strict=True)
            )
            code.add_block(*places)
        for cell, place in results.items() if _IN_REGISTERS else ():
            store(load(sums[cell]), place)

    return multiply
