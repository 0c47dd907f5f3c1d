"""Groups of packed weights times 8-bit values, with the x86 instruction that adds four products at a time (VPDPBUSD).

It multiplies values without sign with values that have one: weights are taken as ``w + bias`` (see ``gemv_int8``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from elastikv.kernels.cpu.blocks import Q4_0_BLOCKS
from elastikv.kernels.cpu.k_blocks import Q4_K_BLOCKS, Q5_K_BLOCKS, Q6_K_BLOCKS
from elastikv.kernels.cpu.vector import F32, F32x16, I32x16, Vector, call_intrinsic, pointer, vector_type
from elastikv.kernels.cpu.x86 import instruction

_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


def dot_group(layout: Any, blocks: int, x: int, start: int, x_scales: int, sums: Vector) -> Vector:
    """``sums`` plus a group of packed weights times as many int8 values, spread over sixteen float32.

    x, start, x_scales: addresses of one pair (64 values), or four, as ``gemv_int8`` lays them out for this layout.
    """
    raise NotImplementedError


class _Emitter:
    """Writes the code of one group."""

    def __init__(self, builder: ir.IRBuilder, args: Sequence[ir.Value]) -> None:
        self.builder = builder
        self.blocks, self._x, self._start, self._x_scales, self.sums = args

    # Memory

    def load(self, address: ir.Value, offset: int, typ: ir.Type) -> ir.Value:
        place = self.builder.add(address, ir.Constant(address.type, offset))
        return self.builder.load(pointer(self.builder, place), align=1, typ=typ)

    def bytes_at(self, offset: int, count: int) -> ir.Value:
        return self.load(self.blocks, offset, ir.VectorType(_I8, count))

    def half_at(self, offset: int) -> ir.Value:
        return self.builder.fpext(self.load(self.blocks, offset, ir.HalfType()), F32)

    # Lanes

    def constant(self, like: ir.Value, value: int) -> ir.Constant:
        return ir.Constant(like.type, [value] * like.type.count)

    def shuffled(self, a: ir.Value, b: ir.Value, lanes: Sequence[int]) -> ir.Value:
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes)))

    def joined(self, low: ir.Value, high: ir.Value) -> ir.Value:
        return self.shuffled(low, high, range(2 * low.type.count))

    def masked(self, raw: ir.Value, shift: int, mask: int) -> ir.Value:
        shifted = self.builder.lshr(raw, self.constant(raw, shift)) if shift else raw
        return self.builder.and_(shifted, self.constant(raw, mask))

    def raised(self, bits: ir.Value, shift: int) -> ir.Value:
        return self.builder.shl(bits, self.constant(bits, shift))

    def spread(self, scalar: ir.Value, count: int) -> ir.Value:
        vector = ir.VectorType(scalar.type, count)
        single = self.builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, _I32(0))
        return self.shuffled(single, single, [0] * count)

    # Products

    def starts(self, pair: int) -> ir.Value:
        return self.load(self._start, 64 * pair, I32x16)

    def dot(self, weights: ir.Value, pair: int, sums: ir.Value) -> ir.Value:
        """int32 sums plus 64 weights times the pair's values, as float32."""
        x = self.load(self._x, 64 * pair, ir.VectorType(_I8, 64))
        sums = instruction(self.builder, "vpdpbusd $3, $2, $0", I32x16, "=v,0,v,v", [sums, weights, x])
        return self.builder.sitofp(sums, F32x16)

    def add(self, products: ir.Value, pair: int) -> None:
        x_scales = self.load(self._x_scales, 64 * pair, F32x16)
        self.sums = self.fma(products, x_scales, self.sums)

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        return call_intrinsic(self.builder, "llvm.fma.v16f32", F32x16, [a, b, c])


def _group(write: Callable[[_Emitter], None]) -> Any:
    def define(typing: Any, blocks: Any, x: Any, start: Any, x_scales: Any, sums: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            emitter = _Emitter(builder, args)
            write(emitter)
            return emitter.sums

        return vector_type(types.intp, types.intp, types.intp, types.intp, vector_type), emit

    return intrinsic(define)


@_group
def _dot_q4_0(code: _Emitter) -> None:
    """Low halves of both blocks, then high halves of both; 8 too large."""
    raw = code.joined(code.bytes_at(2, 16), code.bytes_at(20, 16))
    both = ir.Constant(ir.VectorType(F32, 2), ir.Undefined)
    for index in range(2):
        both = code.builder.insert_element(both, code.half_at(index * 18), _I32(index))
    scales = code.shuffled(both, both, ([0] * 4 + [1] * 4) * 2)
    unsigned = code.joined(code.masked(raw, 0, 15), code.masked(raw, 4, 15))
    code.add(code.builder.fmul(code.dot(unsigned, 0, code.starts(0)), scales), 0)


def _packed_scales(code: _Emitter) -> tuple[ir.Value, ir.Value]:
    """``d scale`` and ``dmin minimum / 4`` of the eight parts of a q4_k or q5_k block, float32.

    Four 6-bit numbers at a time, in a 32-bit word: see ``k_blocks`` for where their bits are.
    """
    builder = code.builder
    first, second, third = (code.load(code.blocks, 4 + 4 * word, _I32) for word in range(3))

    def bits(word: ir.Value, shift: int, mask: int) -> ir.Value:
        return builder.and_(builder.lshr(word, _I32(shift)), _I32(mask))

    def eight(low_parts: ir.Value, high_bits: ir.Value, factor: ir.Value) -> ir.Value:
        upper = builder.shl(bits(low_parts, 6, 0x03030303), _I32(4))
        high_parts = builder.zext(builder.or_(high_bits, upper), _I64)
        both = builder.or_(builder.zext(bits(low_parts, 0, 0x3F3F3F3F), _I64), builder.shl(high_parts, _I64(32)))
        numbers = builder.uitofp(builder.bitcast(both, ir.VectorType(_I8, 8)), ir.VectorType(F32, 8))
        return builder.fmul(numbers, code.spread(factor, 8))

    quarter = builder.fmul(code.half_at(2), ir.Constant(F32, 0.25))
    scales = eight(first, bits(third, 0, 0x0F0F0F0F), code.half_at(0))
    return scales, eight(second, bits(third, 4, 0x0F0F0F0F), quarter)


def _with_minima(code: _Emitter, nibbles_at: int, fifth_bits: ir.Value | None) -> None:
    """``d scale sum(q x) - dmin minimum sum(x)``; the starts are ``-sum(x)`` in two lots of four lanes each."""
    scales, minima = _packed_scales(code)
    for pair in range(4):
        raw = code.bytes_at(nibbles_at + 32 * pair, 32)
        weights = code.joined(code.masked(raw, 0, 15), code.masked(raw, 4, 15))
        if fifth_bits is not None:
            fifths = (code.masked(fifth_bits, 2 * pair + index, 1) for index in range(2))
            weights = code.builder.or_(weights, code.raised(code.joined(*fifths), 4))
        lanes = [2 * pair] * 8 + [2 * pair + 1] * 8
        zero = ir.Constant(I32x16, None)
        sums_of_x = code.builder.sitofp(code.starts(pair), F32x16)
        too_much = code.builder.fmul(sums_of_x, code.shuffled(minima, minima, lanes))
        code.add(code.fma(code.dot(weights, pair, zero), code.shuffled(scales, scales, lanes), too_much), pair)


@_group
def _dot_q4_k(code: _Emitter) -> None:
    _with_minima(code, 16, None)


@_group
def _dot_q5_k(code: _Emitter) -> None:
    _with_minima(code, 48, code.bytes_at(16, 32))


@_group
def _dot_q6_k(code: _Emitter) -> None:
    """Weights are 32 too large; there is a scale for each sixteen, which fall into four lanes."""
    builder = code.builder
    whole = builder.sitofp(code.bytes_at(192, 16), F32x16)
    scales = builder.fmul(whole, code.spread(code.half_at(208), 16))
    for pair in range(4):
        half, shift = pair // 2, pair % 2 * 4
        upper = code.bytes_at(128 + 32 * half, 32)
        above = code.joined(code.masked(upper, shift, 3), code.masked(upper, shift + 2, 3))
        weights = builder.or_(code.masked(code.bytes_at(64 * half, 64), shift, 15), code.raised(above, 4))
        lanes = [4 * pair + lane // 4 for lane in range(16)]
        products = builder.fmul(code.dot(weights, pair, code.starts(pair)), code.shuffled(scales, scales, lanes))
        code.add(products, pair)


_OF_LABEL = {
    Q4_0_BLOCKS.label: _dot_q4_0,
    Q4_K_BLOCKS.label: _dot_q4_k,
    Q5_K_BLOCKS.label: _dot_q5_k,
    Q6_K_BLOCKS.label: _dot_q6_k,
}


@overload(dot_group)
def _choose_dot_group(layout: Any, blocks: Any, x: Any, start: Any, x_scales: Any, sums: Any) -> Any:
    implementation = _OF_LABEL[layout.label]

    def dot(layout: Any, blocks: Any, x: Any, start: Any, x_scales: Any, sums: Any) -> Any:
        return implementation(blocks, x, start, x_scales, sums)

    return dot
