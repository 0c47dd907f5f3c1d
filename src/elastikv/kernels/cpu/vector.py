"""Sixteen float32 values at a time: the small layer that the kernels are written in.

A ``Vector`` is an LLVM value ``<16 x float>``; LLVM lowers it to what the processor has (one AVX-512
register, two of AVX2, four of NEON), so nothing here depends on x86. Addresses are plain integers,
in bytes, and may be unaligned.

    acc = fma(load_f16(address), load_f32(other), acc)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 16

Vector = Any
"""In annotations of kernels: sixteen float32 values."""

F32 = ir.FloatType()
I32 = ir.IntType(32)
F32x16 = ir.VectorType(F32, LANES)
I32x16 = ir.VectorType(I32, LANES)


class VectorType(types.Type):
    """numba's type of sixteen float32 values."""

    def __init__(self) -> None:
        super().__init__(name="f32x16")


vector_type = VectorType()


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, frontend_type: types.Type) -> None:
        super().__init__(manager, frontend_type, F32x16)


def splat_value(builder: ir.IRBuilder, scalar: ir.Value, n_lanes: int = LANES) -> ir.Value:
    vector = ir.VectorType(scalar.type, n_lanes)
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, I32(0))
    return builder.shuffle_vector(
        single, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(I32, n_lanes), [0] * n_lanes)
    )


def first_lanes(builder: ir.IRBuilder, count: ir.Value, n_lanes: int = LANES) -> ir.Value:
    """A mask of the lanes below ``count``."""
    lanes = ir.Constant(ir.VectorType(I32, n_lanes), list(range(n_lanes)))
    return builder.icmp_unsigned("<", lanes, splat_value(builder, builder.trunc(count, I32), n_lanes))


def pointer(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return builder.inttoptr(address, ir.PointerType())


def call_intrinsic(
    builder: ir.IRBuilder, name: str, result: ir.Type, args: list[ir.Value], fastmath: tuple[str, ...] = ()
) -> ir.Value:
    """Call an LLVM intrinsic."""
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, [arg.type for arg in args]), name)
    return builder.call(function, args, fastmath=fastmath)


# --- between memory and registers


def _widen_f32(builder: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    return raw


def _widen_f16(builder: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    return builder.fpext(raw, F32x16)


def _widen_bf16(builder: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    high_half = builder.shl(builder.zext(raw, I32x16), ir.Constant(I32x16, [16] * LANES))
    return builder.bitcast(high_half, F32x16)


def _widen_i8(builder: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    return builder.sitofp(builder.sext(raw, I32x16), F32x16)


def _loader(element: ir.Type, suffix: str, widen: Callable[[ir.IRBuilder, ir.Value], ir.Value]) -> tuple[Any, Any]:
    """``load(address)`` and ``load_part(address, count)`` of one element type; lanes from ``count`` on are 0."""
    raw_type = ir.VectorType(element, LANES)

    def load(typing: Any, address: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            return widen(builder, builder.load(pointer(builder, args[0]), align=1, typ=raw_type))

        return vector_type(types.intp), emit

    def load_part(typing: Any, address: Any, count: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            mask = first_lanes(builder, args[1])
            name = f"llvm.masked.load.v{LANES}{suffix}.p0"
            zero = ir.Constant(raw_type, None)
            raw = call_intrinsic(builder, name, raw_type, [pointer(builder, args[0]), I32(1), mask, zero])
            return widen(builder, raw)

        return vector_type(types.intp, types.intp), emit

    return intrinsic(load), intrinsic(load_part)


def _widen_low_nibbles(builder: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    return _centred(builder, builder.and_(raw, ir.Constant(raw.type, [15] * LANES)))


def _widen_high_nibbles(builder: ir.IRBuilder, raw: ir.Value) -> ir.Value:
    return _centred(builder, builder.lshr(raw, ir.Constant(raw.type, [4] * LANES)))


def _centred(builder: ir.IRBuilder, nibbles: ir.Value) -> ir.Value:
    """0..15 as -8..7."""
    return _widen_i8(builder, builder.sub(nibbles, ir.Constant(nibbles.type, [8] * LANES)))


load_f32, load_f32_part = _loader(F32, "f32", _widen_f32)
load_f16, load_f16_part = _loader(ir.HalfType(), "f16", _widen_f16)
load_bf16, load_bf16_part = _loader(ir.IntType(16), "i16", _widen_bf16)
load_i8, load_i8_part = _loader(ir.IntType(8), "i8", _widen_i8)
load_low_nibbles, _ = _loader(ir.IntType(8), "i8", _widen_low_nibbles)
load_high_nibbles, _ = _loader(ir.IntType(8), "i8", _widen_high_nibbles)


def _narrow_f32(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return value


def _narrow_f16(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return builder.fptrunc(value, ir.VectorType(ir.HalfType(), LANES))


def _narrow_bf16(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """Round to nearest, ties to even, on the bits; a NaN must not be rounded up to infinity."""
    bits = builder.bitcast(value, I32x16)
    sixteen, one = ir.Constant(I32x16, [16] * LANES), ir.Constant(I32x16, [1] * LANES)
    odd = builder.and_(builder.lshr(bits, sixteen), one)
    rounded = builder.add(bits, builder.add(odd, ir.Constant(I32x16, [0x7FFF] * LANES)))
    quiet = builder.or_(bits, ir.Constant(I32x16, [0x400000] * LANES))
    is_nan = builder.fcmp_unordered("uno", value, value)
    chosen = builder.lshr(builder.select(is_nan, quiet, rounded), sixteen)
    return builder.trunc(chosen, ir.VectorType(ir.IntType(16), LANES))


def _narrow_whole(bits: int) -> Callable[[ir.IRBuilder, ir.Value], ir.Value]:
    """Values are whole numbers of so many bits already."""

    def narrow(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
        return builder.trunc(builder.fptosi(value, I32x16), ir.VectorType(ir.IntType(bits), LANES))

    return narrow


def _storer(suffix: str, narrow: Callable[[ir.IRBuilder, ir.Value], ir.Value]) -> tuple[Any, Any]:
    """``store(address, value)`` and ``store_part(address, value, count)`` of one element type."""

    def store(typing: Any, address: Any, value: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            builder.store(narrow(builder, args[1]), pointer(builder, args[0]), align=1)
            return context.get_dummy_value()

        return types.void(types.intp, vector_type), emit

    def store_part(typing: Any, address: Any, value: Any, count: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            narrowed, mask = narrow(builder, args[1]), first_lanes(builder, args[2])
            arguments = [narrowed, pointer(builder, args[0]), I32(1), mask]
            call_intrinsic(builder, f"llvm.masked.store.v{LANES}{suffix}.p0", ir.VoidType(), arguments)
            return context.get_dummy_value()

        return types.void(types.intp, vector_type, types.intp), emit

    return intrinsic(store), intrinsic(store_part)


store_f32, store_f32_part = _storer("f32", _narrow_f32)
store_f16, store_f16_part = _storer("f16", _narrow_f16)
store_bf16, store_bf16_part = _storer("i16", _narrow_bf16)
store_i8, store_i8_part = _storer("i8", _narrow_whole(8))
store_i16, _ = _storer("i16", _narrow_whole(16))


def _prefetcher(locality: int) -> Any:
    def prefetch(typing: Any, address: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            arguments = [pointer(builder, args[0]), I32(0), I32(locality), I32(1)]  # to read; data
            call_intrinsic(builder, "llvm.prefetch.p0", ir.VoidType(), arguments)
            return context.get_dummy_value()

        return types.void(types.intp), emit

    return intrinsic(prefetch)


prefetch_outer = _prefetcher(2)
"""``prefetch_outer(address)``: ask for the cache line at an address, which need not be valid; only to the second cache.

To the first, few lines can be on their way at a time, and loads wait behind them.
"""

prefetch_once = _prefetcher(0)
"""The same for a line that is read once: it goes past the outer caches, and displaces nothing there."""


@intrinsic
def load_half(typing: Any, address: Any) -> Any:
    """One float16 as float32."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.fpext(builder.load(pointer(builder, args[0]), align=1, typ=ir.HalfType()), F32)

    return types.float32(types.intp), emit


def _byte_loader(signed: bool) -> Any:
    def load(typing: Any, address: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            raw = builder.load(pointer(builder, args[0]), align=1, typ=ir.IntType(8))
            return (builder.sext if signed else builder.zext)(raw, args[0].type)

        return types.intp(types.intp), emit

    return intrinsic(load)


load_byte = _byte_loader(signed=False)
load_signed_byte = _byte_loader(signed=True)


@intrinsic
def store_half(typing: Any, address: Any, value: Any) -> Any:
    """One float32 as float16, rounded to nearest even."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        builder.store(builder.fptrunc(args[1], ir.HalfType()), pointer(builder, args[0]), align=1)
        return context.get_dummy_value()

    return types.void(types.intp, types.float32), emit


@intrinsic
def copy_half(typing: Any, source: Any, target: Any) -> Any:
    """One float16 from an address to another."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        bits = builder.load(pointer(builder, args[0]), align=1, typ=ir.IntType(16))
        builder.store(bits, pointer(builder, args[1]), align=1)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), emit


@intrinsic
def load_float(typing: Any, address: Any) -> Any:
    """One float32."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.load(pointer(builder, args[0]), align=1, typ=F32)

    return types.float32(types.intp), emit


@intrinsic
def store_float(typing: Any, address: Any, value: Any) -> Any:
    """One float32."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        builder.store(args[1], pointer(builder, args[0]), align=1)
        return context.get_dummy_value()

    return types.void(types.intp, types.float32), emit


def _lane_pointers(builder: ir.IRBuilder, address: ir.Value, stride: ir.Value) -> ir.Value:
    lanes = ir.Constant(ir.VectorType(stride.type, LANES), list(range(LANES)))
    addresses = builder.add(splat_value(builder, address), builder.mul(lanes, splat_value(builder, stride)))
    return builder.inttoptr(addresses, ir.VectorType(ir.PointerType(), LANES))


@intrinsic
def load_f32_strided(typing: Any, address: Any, stride: Any, count: Any) -> Any:
    """``count`` float32, ``stride`` bytes apart."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        pointers, mask = _lane_pointers(builder, args[0], args[1]), first_lanes(builder, args[2])
        arguments = [pointers, I32(4), mask, ir.Constant(F32x16, None)]
        return call_intrinsic(builder, f"llvm.masked.gather.v{LANES}f32.v{LANES}p0", F32x16, arguments)

    return vector_type(types.intp, types.intp, types.intp), emit


@intrinsic
def store_f32_strided(typing: Any, address: Any, value: Any, stride: Any, count: Any) -> Any:
    """The first ``count`` lanes, ``stride`` bytes apart."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        pointers, mask = _lane_pointers(builder, args[0], args[2]), first_lanes(builder, args[3])
        name = f"llvm.masked.scatter.v{LANES}f32.v{LANES}p0"
        call_intrinsic(builder, name, ir.VoidType(), [args[1], pointers, I32(4), mask])
        return context.get_dummy_value()

    return types.void(types.intp, vector_type, types.intp, types.intp), emit
