"""Thirty-two int16 values at a time, for products of integers.

x86 has an instruction for ``add_dots`` (VPDPWSSD with VNNI, VPMADDWD without); elsewhere it is plain LLVM.

    sums = add_dots(load_i8_as_i16(row), load_i16(other), zero_sums())
"""

from __future__ import annotations

from llvmlite import ir
from numba import types

from elastikv.kernels.cpu.jit import inlined
from elastikv.kernels.cpu.simd.features import has
from elastikv.kernels.cpu.simd.memory import load_first
from elastikv.kernels.cpu.simd.vector import (
    I8,
    I32,
    LANES,
    F32x16,
    I16x32,
    I32x16,
    Int16Vector,
    call_intrinsic,
    halves,
    int16_type,
    int32_type,
    operation,
    pointer,
    shuffled,
    splat_value,
    vector_type,
)

INT16_LANES = 2 * LANES

_I8x32 = ir.VectorType(I8, INT16_LANES)
_I32x32 = ir.VectorType(I32, INT16_LANES)


# --- between memory and registers


@operation(int16_type, types.intp)
def load_i16(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """``load_i16(address)``: 32 int16."""
    return builder.load(pointer(builder, address), align=1, typ=I16x32)


@operation(int16_type, types.intp)
def load_i8_as_i16(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """``load_i8_as_i16(address)``: 32 int8 as int16."""
    return builder.sext(builder.load(pointer(builder, address), align=1, typ=_I8x32), I16x32)


@operation(int16_type, types.intp, types.intp)
def load_i8_as_i16_part(builder: ir.IRBuilder, address: ir.Value, count: ir.Value) -> ir.Value:
    """``load_i8_as_i16_part(address, count)``: the first ``count`` of 32 int8 as int16, zeros behind."""
    return builder.sext(load_first(builder, _I8x32, address, count), I16x32)


@inlined
def load_i8_block(row: int, start: int, width: int) -> Int16Vector:
    """32 int8 of a row from ``start`` on, as int16; zeros from ``width`` on."""
    if start + INT16_LANES <= width:
        return load_i8_as_i16(row + start)
    return load_i8_as_i16_part(row + start, width - start)


@operation(int16_type, types.intp)
def splat_i16_pair(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """``splat_i16_pair(address)``: two int16, sixteen times."""
    pair = builder.load(pointer(builder, address), align=1, typ=I32)
    return builder.bitcast(splat_value(builder, pair), I16x32)


# --- arithmetic


def _interleaved(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, first: int) -> ir.Value:
    return shuffled(builder, a, b, [lane for i in range(first, first + LANES) for lane in (i, i + INT16_LANES)])


@operation(int16_type, int16_type, int16_type)
def interleave_low(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """``interleave_low(a, b)``: a0 b0 a1 b1 .. a15 b15."""
    return _interleaved(builder, a, b, 0)


@operation(int16_type, int16_type, int16_type)
def interleave_high(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """``interleave_high(a, b)``: a16 b16 .. a31 b31."""
    return _interleaved(builder, a, b, LANES)


def dots_of_pairs(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """a[2 i] b[2 i] + a[2 i + 1] b[2 i + 1], by the processor's own instruction if it is known to have one.

    LLVM would find it in the plain form, too, but not where it has moved a part of that out of a loop.
    """
    if has("avx512bw"):
        return call_intrinsic(builder, "llvm.x86.avx512.pmaddw.d.512", I32x16, [a, b])
    if has("avx2"):
        half = ir.VectorType(I32, LANES // 2)
        pairs = zip(halves(builder, a), halves(builder, b), strict=True)
        low, high = (call_intrinsic(builder, "llvm.x86.avx2.pmadd.wd", half, list(pair)) for pair in pairs)
        return shuffled(builder, low, high, list(range(LANES)))
    products = builder.mul(builder.sext(a, _I32x32), builder.sext(b, _I32x32), flags=["nsw"])
    even, odd = (shuffled(builder, products, products, list(range(start, INT16_LANES, 2))) for start in (0, 1))
    return builder.add(even, odd)


@operation(int32_type, int16_type, int16_type, int32_type)
def add_dots(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, sums: ir.Value) -> ir.Value:
    """``add_dots(a, b, sums)``: sums[i] + a[2 i] b[2 i] + a[2 i + 1] b[2 i + 1]."""
    return builder.add(dots_of_pairs(builder, a, b), sums)


@operation(int32_type)
def zero_sums(builder: ir.IRBuilder) -> ir.Value:
    """``zero_sums()``: sixteen int32 zeros."""
    return ir.Constant(I32x16, None)


@operation(vector_type, int32_type)
def to_float(builder: ir.IRBuilder, sums: ir.Value) -> ir.Value:
    """``to_float(sums)``: sixteen int32 as float32."""
    return builder.sitofp(sums, F32x16)
