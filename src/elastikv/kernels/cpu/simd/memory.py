"""Between memory and registers: loads to float32, stores from it, prefetching. Addresses need no alignment.

``load_*_part`` and ``store_*_part`` touch nothing behind the first ``count`` lanes; loads leave zeros there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from elastikv.kernels.cpu.simd.features import has
from elastikv.kernels.cpu.simd.vector import (
    F16,
    F32,
    I8,
    I16,
    I32,
    LANES,
    F32x16,
    I32x16,
    call_intrinsic,
    first_lanes,
    operation,
    pointer,
    splat_value,
    vector_type,
)

# --- the first lanes of a vector


def _has_masks(element: ir.Type) -> bool:
    """Whether one instruction loads or stores some lanes. Without, LLVM would branch for each of them."""
    return has("avx512bw") or (has("avx2") and element in (F32, I32))


def load_first(builder: ir.IRBuilder, typ: ir.VectorType, address: ir.Value, count: ir.Value) -> ir.Value:
    """Write the code that loads the lanes below ``count``, and zeros."""
    if _has_masks(typ.element):
        name = f"llvm.masked.load.v{typ.count}{typ.element.intrinsic_name}.p0"
        mask, zero = first_lanes(builder, count, typ.count), ir.Constant(typ, None)
        return call_intrinsic(builder, name, typ, [pointer(builder, address), I32(1), mask, zero])
    place = pointer(builder, builder.ptrtoint(cgutils.alloca_once(builder, typ), address.type))
    builder.store(ir.Constant(typ, None), place, align=1)
    _copy(builder, typ.element, pointer(builder, address), place, count)
    return builder.load(place, align=1, typ=typ)


def store_first(builder: ir.IRBuilder, value: ir.Value, address: ir.Value, count: ir.Value) -> None:
    """Write the code that stores the lanes below ``count``."""
    typ = value.type
    if _has_masks(typ.element):
        name = f"llvm.masked.store.v{typ.count}{typ.element.intrinsic_name}.p0"
        arguments = [value, pointer(builder, address), I32(1), first_lanes(builder, count, typ.count)]
        call_intrinsic(builder, name, ir.VoidType(), arguments)
        return
    place = pointer(builder, builder.ptrtoint(cgutils.alloca_once(builder, typ), address.type))
    builder.store(value, place, align=1)
    _copy(builder, typ.element, place, pointer(builder, address), count)


def _copy(builder: ir.IRBuilder, element: ir.Type, source: ir.Value, target: ir.Value, count: ir.Value) -> None:
    with cgutils.for_range(builder, count) as loop:
        place, end = (builder.gep(each, [loop.index], source_etype=element) for each in (source, target))
        builder.store(builder.load(place, align=1, typ=element), end, align=1)


# --- vectors


def _widen_f32(builder: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    return raw


def _widen_f16(builder: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    return builder.fpext(raw, F32x16)


def _widen_bf16(builder: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    high_half = builder.shl(builder.zext(raw, I32x16), ir.Constant(I32x16, [16] * LANES))
    return builder.bitcast(high_half, F32x16)


def _widen_i8(builder: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    return builder.sitofp(builder.sext(raw, I32x16), F32x16)


def _loader(element: ir.Type, widen: Callable[[ir.IRBuilder, ir.Value], ir.Value]) -> tuple[Any, Any]:
    """``load(address)`` and ``load_part(address, count)`` for one element type."""
    raw_type = ir.VectorType(element, LANES)

    @operation(vector_type, types.intp)
    def load(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
        return widen(builder, builder.load(pointer(builder, address), align=1, typ=raw_type))

    @operation(vector_type, types.intp, types.intp)
    def load_part(builder: ir.IRBuilder, address: ir.Value, count: ir.Value) -> ir.Value:
        return widen(builder, load_first(builder, raw_type, address, count))

    return load, load_part


def _widen_low_nibbles(builder: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    return _centred(builder, builder.and_(raw, ir.Constant(raw.type, [15] * LANES)))


def _widen_high_nibbles(builder: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    return _centred(builder, builder.lshr(raw, ir.Constant(raw.type, [4] * LANES)))


def _centred(builder: ir.IRBuilder, nibbles: ir.Value) -> ir.Value:
    """0..15 as -8..7."""
    return _widen_i8(builder, builder.sub(nibbles, ir.Constant(nibbles.type, [8] * LANES)))


load_f32, load_f32_part = _loader(F32, _widen_f32)
load_f16, load_f16_part = _loader(F16, _widen_f16)
load_bf16, load_bf16_part = _loader(I16, _widen_bf16)
load_i8, load_i8_part = _loader(I8, _widen_i8)
load_low_nibbles, _ = _loader(I8, _widen_low_nibbles)
load_high_nibbles, _ = _loader(I8, _widen_high_nibbles)


def _narrow_f32(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return value


def _narrow_f16(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return builder.fptrunc(value, ir.VectorType(F16, LANES))


def _narrow_bf16(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """Round to nearest, ties to even, on the bits; a NaN must not be rounded up to infinity."""
    bits = builder.bitcast(value, I32x16)
    sixteen, one = ir.Constant(I32x16, [16] * LANES), ir.Constant(I32x16, [1] * LANES)
    odd = builder.and_(builder.lshr(bits, sixteen), one)
    rounded = builder.add(bits, builder.add(odd, ir.Constant(I32x16, [0x7FFF] * LANES)))
    quiet = builder.or_(bits, ir.Constant(I32x16, [0x400000] * LANES))
    is_nan = builder.fcmp_unordered("uno", value, value)
    chosen = builder.lshr(builder.select(is_nan, quiet, rounded), sixteen)
    return builder.trunc(chosen, ir.VectorType(I16, LANES))


def _narrow_integer(bits: int) -> Callable[[ir.IRBuilder, ir.Value], ir.Value]:
    """Values are integers of so many bits already."""

    def narrow(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
        return builder.trunc(builder.fptosi(value, I32x16), ir.VectorType(ir.IntType(bits), LANES))

    return narrow


def _storer(narrow: Callable[[ir.IRBuilder, ir.Value], ir.Value]) -> tuple[Any, Any]:
    """``store(address, value)`` and ``store_part(address, value, count)`` for one element type."""

    @operation(types.void, types.intp, vector_type)
    def store(builder: ir.IRBuilder, address: ir.Value, value: ir.Value) -> None:
        builder.store(narrow(builder, value), pointer(builder, address), align=1)

    @operation(types.void, types.intp, vector_type, types.intp)
    def store_part(builder: ir.IRBuilder, address: ir.Value, value: ir.Value, count: ir.Value) -> None:
        store_first(builder, narrow(builder, value), address, count)

    return store, store_part


store_f32, store_f32_part = _storer(_narrow_f32)
store_f16, store_f16_part = _storer(_narrow_f16)
store_bf16, store_bf16_part = _storer(_narrow_bf16)
store_i8, store_i8_part = _storer(_narrow_integer(8))
store_i16, _ = _storer(_narrow_integer(16))


def _lane_pointers(builder: ir.IRBuilder, address: ir.Value, stride: ir.Value) -> ir.Value:
    lanes = ir.Constant(ir.VectorType(stride.type, LANES), list(range(LANES)))
    addresses = builder.add(splat_value(builder, address), builder.mul(lanes, splat_value(builder, stride)))
    return builder.inttoptr(addresses, ir.VectorType(ir.PointerType(), LANES))


@operation(vector_type, types.intp, types.intp, types.intp)
def load_f32_strided(builder: ir.IRBuilder, address: ir.Value, stride: ir.Value, count: ir.Value) -> ir.Value:
    """``load_f32_strided(address, stride, count)``: ``count`` float32, ``stride`` bytes apart."""
    pointers, mask = _lane_pointers(builder, address, stride), first_lanes(builder, count)
    arguments = [pointers, I32(4), mask, ir.Constant(F32x16, None)]
    return call_intrinsic(builder, f"llvm.masked.gather.v{LANES}f32.v{LANES}p0", F32x16, arguments)


@operation(types.void, types.intp, vector_type, types.intp, types.intp)
def store_f32_strided(
    builder: ir.IRBuilder, address: ir.Value, value: ir.Value, stride: ir.Value, count: ir.Value
) -> None:
    """``store_f32_strided(address, value, stride, count)``: the first ``count`` lanes, ``stride`` bytes apart."""
    pointers, mask = _lane_pointers(builder, address, stride), first_lanes(builder, count)
    name = f"llvm.masked.scatter.v{LANES}f32.v{LANES}p0"
    call_intrinsic(builder, name, ir.VoidType(), [value, pointers, I32(4), mask])


# --- prefetching


def prefetch_line(builder: ir.IRBuilder, address: ir.Value, locality: int) -> None:
    """Write the code that fetches the cache line at an address; locality: LLVM's, from 0 (used once) to 3."""
    arguments = [pointer(builder, address), I32(0), I32(locality), I32(1)]  # to read; data
    call_intrinsic(builder, "llvm.prefetch.p0", ir.VoidType(), arguments)


def _prefetcher(locality: int) -> Any:
    @operation(types.void, types.intp)
    def prefetch(builder: ir.IRBuilder, address: ir.Value) -> None:
        prefetch_line(builder, address, locality)

    return prefetch


TO_L2 = 2
"""Locality of what is fetched to the second cache and not to the first."""

prefetch_l2 = _prefetcher(TO_L2)
"""``prefetch_l2(address)``: fetch the cache line at an address, which need not be valid, but only to the second cache.

To the first, few lines can be on their way at a time, and loads wait behind them.
"""

prefetch_once = _prefetcher(0)
"""``prefetch_once(address)``: fetch a line that is read once, past the outer caches, where it displaces nothing."""


# --- single values


@operation(types.float32, types.intp)
def load_half(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """``load_half(address)``: one float16 as float32."""
    return builder.fpext(builder.load(pointer(builder, address), align=1, typ=F16), F32)


@operation(types.void, types.intp, types.float32)
def store_half(builder: ir.IRBuilder, address: ir.Value, value: ir.Value) -> None:
    """``store_half(address, value)``: one float32 as float16, rounded to nearest even."""
    builder.store(builder.fptrunc(value, F16), pointer(builder, address), align=1)


@operation(types.void, types.intp, types.intp)
def copy_half(builder: ir.IRBuilder, source: ir.Value, target: ir.Value) -> None:
    """``copy_half(source, target)``: one float16 from an address to another."""
    bits = builder.load(pointer(builder, source), align=1, typ=I16)
    builder.store(bits, pointer(builder, target), align=1)


@operation(types.float32, types.intp)
def load_float(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """``load_float(address)``: one float32."""
    return builder.load(pointer(builder, address), align=1, typ=F32)


@operation(types.void, types.intp, types.float32)
def store_float(builder: ir.IRBuilder, address: ir.Value, value: ir.Value) -> None:
    """``store_float(address, value)``: one float32."""
    builder.store(value, pointer(builder, address), align=1)


@operation(types.void, types.intp, types.int32)
def store_int(builder: ir.IRBuilder, address: ir.Value, value: ir.Value) -> None:
    """``store_int(address, value)``: one int32."""
    builder.store(value, pointer(builder, address), align=1)


@operation(types.intp, types.intp)
def load_byte(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """``load_byte(address)``: one uint8 as an integer."""
    return builder.zext(builder.load(pointer(builder, address), align=1, typ=I8), address.type)


@operation(types.intp, types.intp)
def load_signed_byte(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """``load_signed_byte(address)``: one int8 as an integer."""
    return builder.sext(builder.load(pointer(builder, address), align=1, typ=I8), address.type)
