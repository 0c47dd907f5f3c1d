"""Products of one row of packed weights with int8 values, see ``byte_products``.

These multiply values without sign with values that have one: weights are taken as ``w + bias`` (see
``matmul/skinny_int8``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types

from elastikv.kernels.cpu.simd.byte_products import ByteProducts
from elastikv.kernels.cpu.simd.vector import (
    F16,
    F32,
    I8,
    I32,
    F32x16,
    I32x16,
    call_intrinsic,
    operation,
    pointer,
    shuffled,
    vector_type,
)


class Int8Dot:
    """Writes the code of one group: packed weights at ``blocks``, times as many int8 values, in pairs of 32.

    x, start, x_scales: addresses of the group's first pair, as ``matmul/skinny_int8`` lays them out; sums: sixteen
    float32, to which ``add`` adds.
    """

    def __init__(self, builder: ir.IRBuilder, values: Sequence[ir.Value]) -> None:
        self.builder = builder
        self.blocks, self._x, self._start, self._x_scales, self.sums = values

    # Memory

    def load(self, address: ir.Value, offset: int, typ: ir.Type) -> ir.Value:
        """What lies ``offset`` bytes behind an address."""
        place = self.builder.add(address, ir.Constant(address.type, offset))
        return self.builder.load(pointer(self.builder, place), align=1, typ=typ)

    def bytes_at(self, offset: int, count: int) -> ir.Value:
        """``count`` bytes of the blocks."""
        return self.load(self.blocks, offset, ir.VectorType(I8, count))

    def half_at(self, offset: int) -> ir.Value:
        """A float16 of the blocks, as float32."""
        return self.builder.fpext(self.load(self.blocks, offset, F16), F32)

    # Lanes

    def constant(self, like: ir.Value, value: int) -> ir.Constant:
        """A vector of one value."""
        return ir.Constant(like.type, [value] * like.type.count)

    def shuffled(self, a: ir.Value, b: ir.Value, lanes: Sequence[int]) -> ir.Value:
        """Lanes of a and b by number: those of b follow those of a."""
        return shuffled(self.builder, a, b, list(lanes))

    def joined(self, low: ir.Value, high: ir.Value) -> ir.Value:
        """Two vectors as one."""
        return self.shuffled(low, high, range(2 * low.type.count))

    def masked(self, raw: ir.Value, shift: int, mask: int) -> ir.Value:
        """``raw >> shift & mask``."""
        shifted = self.builder.lshr(raw, self.constant(raw, shift)) if shift else raw
        return self.builder.and_(shifted, self.constant(raw, mask))

    def raised(self, bits: ir.Value, shift: int) -> ir.Value:
        """``bits << shift``."""
        return self.builder.shl(bits, self.constant(bits, shift))

    def spread(self, scalar: ir.Value, count: int) -> ir.Value:
        """A scalar in ``count`` lanes."""
        vector = ir.VectorType(scalar.type, count)
        single = self.builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, I32(0))
        return self.shuffled(single, single, [0] * count)

    # Products

    def starts(self, pair: int) -> ir.Value:
        """What the sums of a pair start from, int32."""
        return self.load(self._start, 64 * pair, I32x16)

    def dot(self, weights: ir.Value, pair: int, sums: ir.Value) -> ir.Value:
        """int32 sums plus 64 weights, of at most 6 bits, times the pair's values, as float32."""
        x = self.load(self._x, 64 * pair, ir.VectorType(I8, 64))
        products = ByteProducts(self.builder, highest=63)
        return self.builder.sitofp(products.total(products.add(weights, x, None, sums), sums), F32x16)

    def add(self, products: ir.Value, pair: int) -> None:
        """Add a pair's products, times the scales of its values, to the sums."""
        x_scales = self.load(self._x_scales, 64 * pair, F32x16)
        self.sums = self.fma(products, x_scales, self.sums)

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """``a * b + c``."""
        return call_intrinsic(self.builder, "llvm.fma.v16f32", F32x16, [a, b, c])


def int8_dot(write: Callable[[Int8Dot], None]) -> Any:
    """Decorates what writes a group's code: makes it ``dot(blocks, x, start, x_scales, sums)``, which kernels call."""

    @operation(vector_type, types.intp, types.intp, types.intp, types.intp, vector_type)
    def dot(builder: ir.IRBuilder, *values: ir.Value) -> ir.Value:
        code = Int8Dot(builder, values)
        write(code)
        return code.sums

    return dot
