"""Sixteen rows of packed weights times one row of x, without a panel in between: there is nothing to use it for again.

x is laid out as ``int8_tile`` has it, with a width of one, and sums are made in the same steps: the bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from typing_extensions import override

from elastikv.kernels.cpu.simd.byte_products import ByteProducts, I8x64
from elastikv.kernels.cpu.simd.int8_panel import BLOCK, BlockCode, PanelFormat
from elastikv.kernels.cpu.simd.vector import (
    F32,
    I32,
    LANES,
    F32x16,
    I32x16,
    call_intrinsic,
    operation,
    splat_value,
    vector_type,
)


class _Sums:
    """int32 sums of some words' products, which may come in any order."""

    def __init__(self, products: ByteProducts, n_words: int, start: ir.Value) -> None:
        self._products = products
        self._sums, self._partial = start, None
        self._n_left, self._n_partial = n_words, 0

    def add(self, weights: ir.Value, x: ir.Value) -> ir.Value | None:
        """Another word's; the sums, with the last one."""
        self._partial = self._products.add(weights, x, self._partial, self._sums)
        self._n_left, self._n_partial = self._n_left - 1, self._n_partial + 1
        if self._n_left == 0 or self._n_partial == self._products.at_once:
            self._sums, self._partial = self._products.total(self._partial, self._sums), None
            self._n_partial = 0
        return None if self._n_left else self._sums


class _RowCode(BlockCode):
    """Multiplies a block with x, at an address, and adds the products to sums: a float32 for each row of weights."""

    def __init__(self, builder: ir.IRBuilder, panel: PanelFormat, values: Sequence[ir.Value]) -> None:
        rows, offset, self._x, ahead, self.sums = values
        super().__init__(builder, panel, rows, offset, ahead)
        self._n_parts = 2 if panel.scales == "halves" else 1
        self._part_words = BLOCK // 4 // self._n_parts
        self._scales: dict[int, tuple[ir.Value, ir.Value | None]] = {}
        self._parts: dict[int, list[_Sums]] = {}
        self._finished: dict[int, list[ir.Value]] = {}

    @override
    def put_scales(self, block: int, scales: ir.Value, second: ir.Value | None = None) -> None:
        self._scales[block] = scales, second
        products = ByteProducts(self.builder, self._panel.highest)
        starts = [self._start(block, part) for part in range(self._n_parts)]
        self._parts[block] = [_Sums(products, self._part_words, start) for start in starts]
        self._finished[block] = []

    @override
    def put_values(self, block: int, word: int, values: ir.Value) -> None:
        x = self.builder.bitcast(self._of_x(block, 4 * word, I32), I8x64)
        sums = self._parts[block][word // self._part_words].add(self.builder.bitcast(values, I8x64), x)
        if sums is not None:
            self._finished[block].append(self.builder.sitofp(sums, F32x16))
            if len(self._finished[block]) == self._n_parts:
                x_scale = self._of_x(block, BLOCK, F32)
                self.sums = self._fma(self._products(block, *self._finished[block]), x_scale, self.sums)

    def _products(self, block: int, sums: ir.Value, upper: ir.Value | None = None) -> ir.Value:
        """Sums times the scales of weights. upper: of the upper sixteen, where these have scales of their own."""
        scales, second = self._scales[block]
        if self._panel.scales == "minimum":
            return self._fma(sums, scales, self.builder.fmul(second, self._of_x(block, BLOCK + 4, F32)))
        products = self.builder.fmul(sums, scales)
        return products if upper is None else self._fma(upper, second, products)

    def _start(self, block: int, part: int) -> ir.Value:
        return self._of_x(block, BLOCK + 4 + 4 * part, I32) if self._panel.bias else ir.Constant(I32x16, None)

    def _of_x(self, block: int, offset: int, typ: ir.Type) -> ir.Value:
        return splat_value(self.builder, self._load(self._x, block * self._panel.token_bytes + offset, typ))

    def _fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        return call_intrinsic(self.builder, f"llvm.fma.v{LANES}f32", F32x16, [a, b, c])


def multiply_by(panel: PanelFormat, read: Callable[[BlockCode], None]) -> Any:
    """``sums = multiply(rows, offset, x, ahead, sums)``, which kernels call. read: see ``int8_panel.unpack_by``."""

    @operation(vector_type, *[types.intp] * 4, vector_type)
    def multiply(builder: ir.IRBuilder, *values: ir.Value) -> ir.Value:
        code = _RowCode(builder, panel, values)
        read(code)
        return code.sums

    return multiply
