"""One row of packed weights times one row of x, 256 values at a time, in the order in which they lie in memory.

For processors with AVX2 and no AVX-512: they do not foresee what ``int8_row`` reads next, sixteen rows side by side in
short pieces, so that it waits for memory; and they have too few registers for it.

Of x there are all int8 values first, then the numbers of its blocks that ``int8_tile`` has, one array after the other:
``scales``, ``starts`` and, for "halves", ``upper_starts``. Blocks are filled up to a multiple of eight, with scales of
zero. Sums are made in the same steps as there: the bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from elastikv.kernels.cpu.simd.features import has
from elastikv.kernels.cpu.simd.int8_panel import BLOCK, PanelFormat
from elastikv.kernels.cpu.simd.memory import TO_L2, prefetch_line
from elastikv.kernels.cpu.simd.vector import (
    F16,
    F32,
    I8,
    I16,
    I32,
    LANES,
    F32x16,
    call_intrinsic,
    operation,
    pointer,
    shuffled,
    splat_value,
    vector_type,
)

BLOCKS = 8
"""Blocks of 32 values that are computed together: a lane each."""

VALUES = BLOCKS * BLOCK

_AHEAD = 8192
"""Bytes that prefetching is ahead of reading: 4 KiB are as good, without it a cold matrix takes a fifth longer."""

I8x32, I16x16 = ir.VectorType(I8, 32), ir.VectorType(I16, 16)
I32x8, F32x8 = ir.VectorType(I32, BLOCKS), ir.VectorType(F32, BLOCKS)


def pays() -> bool:
    """Whether this processor is one of those."""
    return has("avx2") and not has("avx512bw")


class DotCode:
    """Writes the code for eight blocks of one row.

    row: address of the packed values; x: of as many int8; starts, upper_starts: of eight numbers each.
    """

    def __init__(self, builder: ir.IRBuilder, panel: PanelFormat, values: Sequence[ir.Value]) -> None:
        self.builder = builder
        self._panel = panel
        self._row, self._x, self._starts, self._upper_starts = values
        self._sums: list[ir.Value | None] = [None] * BLOCKS

    # From the packed row

    def load(self, offset: int, typ: ir.Type) -> ir.Value:
        """What lies ``offset`` bytes behind the beginning."""
        return self._load(self._row, offset, typ)

    def bits(self, value: ir.Value, shift: int, mask: int) -> ir.Value:
        """``byte >> shift & mask`` of each byte; a shift to the left where it is negative.

        mask: none of the bits that a byte gets from its neighbour.
        """
        words = self.builder.bitcast(value, I16x16)
        if shift < 0:
            words = self.builder.shl(words, ir.Constant(I16x16, [-shift] * 16))
        elif shift > 0:
            words = self.builder.lshr(words, ir.Constant(I16x16, [shift] * 16))
        return self.builder.and_(self.builder.bitcast(words, I8x32), ir.Constant(I8x32, [mask] * 32))

    def half_at(self, offset: int) -> ir.Value:
        """A float16, as float32 in each lane."""
        return splat_value(self.builder, self.builder.fpext(self.load(offset, F16), F32), BLOCKS)

    def halves_at(self, stride: int) -> ir.Value:
        """Eight float16 as float32, ``stride`` bytes apart."""
        halves = ir.Constant(ir.VectorType(I16, BLOCKS), ir.Undefined)
        for block in range(BLOCKS):
            halves = self.builder.insert_element(halves, self.load(block * stride, I16), I32(block))
        return self.builder.fpext(self.builder.bitcast(halves, ir.VectorType(F16, BLOCKS)), F32x8)

    # What becomes of it

    def put(self, block: int, values: ir.Value) -> None:
        """``<32 x i8>`` without sign, at most 127: the values of a block."""
        self._multiply(block, values, self._load(self._x, block * BLOCK, I8x32))

    def put_signed(self, block: int, values: ir.Value) -> None:
        """``<32 x i8>``: the values of a block."""
        x = self._load(self._x, block * BLOCK, I8x32)
        sizes = call_intrinsic(self.builder, "llvm.abs.v32i8", I8x32, [values, ir.Constant(ir.IntType(1), 0)])
        self._multiply(block, sizes, call_intrinsic(self.builder, "llvm.x86.avx2.psign.b", I8x32, [x, values]))

    def _multiply(self, block: int, values: ir.Value, x: ir.Value) -> None:
        pairs = call_intrinsic(self.builder, "llvm.x86.avx2.pmadd.ub.sw", I16x16, [values, x])
        arguments = [pairs, ir.Constant(I16x16, [1] * 16)]
        self._sums[block] = call_intrinsic(self.builder, "llvm.x86.avx2.pmadd.wd", I32x8, arguments)

    def products(self, scales: ir.Value, second: ir.Value | None = None) -> ir.Value:
        """``<8 x float>``: the blocks' products without the scales of x. second: see ``PanelFormat.scales``.

        Where that is "one", values have signs.
        """
        pairs = [self._added(*self._sums[first : first + 2]) for first in range(0, BLOCKS, 2)]
        first, last = self._added(*pairs[:2]), self._added(*pairs[2:])  # lanes 0 to 3: of the lower sixteen values
        lower = shuffled(self.builder, first, last, [0, 1, 2, 3, 8, 9, 10, 11])
        upper = shuffled(self.builder, first, last, [4, 5, 6, 7, 12, 13, 14, 15])
        if self._panel.scales == "halves":
            lower = self._scaled(self.builder.add(lower, self._load(self._starts, 0, I32x8)), scales)
            upper = self.builder.add(upper, self._load(self._upper_starts, 0, I32x8))
            return self._fma(self.builder.sitofp(upper, F32x8), second, lower)
        sums = self.builder.add(lower, upper)
        if self._panel.scales == "minimum":
            minima = self.builder.fmul(second, self._load(self._starts, 0, F32x8))
            return self._fma(self.builder.sitofp(sums, F32x8), scales, minima)
        return self._scaled(sums, scales)

    def _scaled(self, sums: ir.Value, scales: ir.Value) -> ir.Value:
        return self.builder.fmul(self.builder.sitofp(sums, F32x8), scales)

    def _added(self, a: ir.Value | None, b: ir.Value | None) -> ir.Value:
        """Sums of neighbours, within halves of a register."""
        assert a is not None
        assert b is not None
        return call_intrinsic(self.builder, "llvm.x86.avx2.phadd.d", I32x8, [a, b])

    def _fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        return call_intrinsic(self.builder, f"llvm.fma.v{BLOCKS}f32", F32x8, [a, b, c])

    def _load(self, address: ir.Value, offset: int, typ: ir.Type) -> ir.Value:
        place = self.builder.add(address, ir.Constant(address.type, offset))
        return self.builder.load(pointer(self.builder, place), align=1, typ=typ)


def dots_by(panel: PanelFormat, group_bytes: int, read: Callable[[DotCode], ir.Value]) -> Any:
    """``dots(row, x, starts, upper_starts, n, out)``, which kernels call: n times eight float32 to ``out``.

    group_bytes: of 256 packed values; read: writes the code that reads them; returns what ``DotCode.products`` did.
    """
    steps = (group_bytes, VALUES, *[4 * BLOCKS] * 3)

    @operation(types.void, *[types.intp] * 6)
    def dots(builder: ir.IRBuilder, *values: ir.Value) -> None:
        *bases, n = *values[:4], values[5], values[4]
        with cgutils.for_range(builder, n) as loop:
            *places, out = (
                builder.add(base, builder.mul(loop.index, ir.Constant(base.type, step)))
                for base, step in zip(bases, steps, strict=True)
            )
            for line in range(_AHEAD, _AHEAD + group_bytes, 64):
                prefetch_line(builder, builder.add(places[0], ir.Constant(places[0].type, line)), TO_L2)
            builder.store(read(DotCode(builder, panel, places)), pointer(builder, out), align=1)

    return dots


@operation(vector_type, *[types.intp] * 3, vector_type)
def add_blocks(
    builder: ir.IRBuilder, products: ir.Value, stride: ir.Value, scales: ir.Value, sums: ir.Value
) -> ir.Value:
    """``add_blocks(products, stride, scales, sums)``: sixteen rows' sums plus eight of their blocks, one by one.

    products: address of eight float32 of the first row, those of the next are ``stride`` bytes behind; scales: of x.
    """

    def load(address: ir.Value, typ: ir.Type) -> ir.Value:
        return builder.load(pointer(builder, address), align=1, typ=typ)

    rows = [load(builder.add(products, builder.mul(stride, stride.type(row))), F32x8) for row in range(LANES)]
    low, high = _transposed(builder, rows[:BLOCKS]), _transposed(builder, rows[BLOCKS:])
    for block in range(BLOCKS):
        scale = splat_value(builder, load(builder.add(scales, scales.type(4 * block)), F32))
        column = shuffled(builder, low[block], high[block], list(range(LANES)))
        sums = call_intrinsic(builder, f"llvm.fma.v{LANES}f32", F32x16, [column, scale, sums])
    return sums


def _transposed(builder: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """8 x 8: pairs, then fours, then eights of lanes change places; x86 has an instruction for each."""

    def mixed(rows: list[ir.Value], distance: int, low: list[int], high: list[int]) -> list[ir.Value]:
        result = list(rows)
        for row in range(BLOCKS):
            if not row & distance:
                a, b = rows[row], rows[row + distance]
                result[row], result[row + distance] = (shuffled(builder, a, b, lanes) for lanes in (low, high))
        return result

    rows = mixed(rows, 1, [0, 8, 2, 10, 4, 12, 6, 14], [1, 9, 3, 11, 5, 13, 7, 15])
    rows = mixed(rows, 2, [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15])
    return mixed(rows, 4, [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15])
