"""Thirty-two int16 values at a time, for products of whole numbers.

``Words`` is an LLVM value ``<32 x i16>``, ``Sums`` one of ``<16 x i32>``. x86 has an instruction for ``add_dots``
(VPDPWSSD with VNNI, VPMADDWD without); elsewhere it is plain LLVM.

    sums = add_dots(load_i8_words(row), load_words(other), no_sums())
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

from elastikv.kernels.cpu.features import has
from elastikv.kernels.cpu.jit import inlined
from elastikv.kernels.cpu.vector import (
    I32,
    LANES,
    F32x16,
    I32x16,
    call_intrinsic,
    first_lanes,
    pointer,
    splat_value,
    vector_type,
)
from elastikv.kernels.cpu.vector_math import halves

N_WORDS = 2 * LANES

Words = Any
"""In annotations of kernels: thirty-two int16 values."""

Sums = Any
"""In annotations of kernels: sixteen int32 values."""

_I8x32 = ir.VectorType(ir.IntType(8), N_WORDS)
_I16x32 = ir.VectorType(ir.IntType(16), N_WORDS)
_I32x32 = ir.VectorType(I32, N_WORDS)


class WordsType(types.Type):
    """numba's type of ``Words``."""

    def __init__(self) -> None:
        super().__init__(name="i16x32")


class SumsType(types.Type):
    """numba's type of ``Sums``."""

    def __init__(self) -> None:
        super().__init__(name="i32x16")


words_type = WordsType()
sums_type = SumsType()


@register_model(WordsType)
class _WordsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, frontend_type: types.Type) -> None:
        super().__init__(manager, frontend_type, _I16x32)


@register_model(SumsType)
class _SumsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, frontend_type: types.Type) -> None:
        super().__init__(manager, frontend_type, I32x16)


def _operation(emit: Callable[..., ir.Value], result: types.Type, *arguments: types.Type) -> Any:
    """An intrinsic from ``emit(builder, *values)``."""

    def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return emit(builder, *args)

    if len(arguments) == 0:
        return intrinsic(lambda typing: (result(), code))
    if len(arguments) == 1:
        return intrinsic(lambda typing, a: (result(*arguments), code))
    if len(arguments) == 2:
        return intrinsic(lambda typing, a, b: (result(*arguments), code))
    return intrinsic(lambda typing, a, b, c: (result(*arguments), code))


def _shuffled(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, lanes: list[int]) -> ir.Value:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


# --- between memory and registers


def _load_words(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return builder.load(pointer(builder, address), align=1, typ=_I16x32)


def _load_i8_words(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return builder.sext(builder.load(pointer(builder, address), align=1, typ=_I8x32), _I16x32)


def _load_i8_words_part(builder: ir.IRBuilder, address: ir.Value, count: ir.Value) -> ir.Value:
    arguments = [pointer(builder, address), I32(1), first_lanes(builder, count, N_WORDS), ir.Constant(_I8x32, None)]
    return builder.sext(call_intrinsic(builder, "llvm.masked.load.v32i8.p0", _I8x32, arguments), _I16x32)


def _splat_pair(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    pair = builder.load(pointer(builder, address), align=1, typ=I32)
    return builder.bitcast(splat_value(builder, pair), _I16x32)


load_words = _operation(_load_words, words_type, types.intp)
"""``load_words(address)``."""

load_i8_words = _operation(_load_i8_words, words_type, types.intp)
"""``load_i8_words(address)``: 32 int8, widened."""

load_i8_words_part = _operation(_load_i8_words_part, words_type, types.intp, types.intp)
"""``load_i8_words_part(address, count)``: the first ``count`` of them, zeros behind."""


@inlined
def load_i8_block(row: int, start: int, width: int) -> Words:
    """32 int8 of a row from ``start`` on, zeros from ``width`` on."""
    if start + N_WORDS <= width:
        return load_i8_words(row + start)
    return load_i8_words_part(row + start, width - start)


splat_pair = _operation(_splat_pair, words_type, types.intp)
"""``splat_pair(address)``: two words, sixteen times."""


# --- arithmetic


def _interleaved(first: int) -> Callable[..., ir.Value]:
    def emit(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
        return _shuffled(builder, a, b, [lane for i in range(first, first + LANES) for lane in (i, i + N_WORDS)])

    return emit


def _pairs_added(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """a[2 i] b[2 i] + a[2 i + 1] b[2 i + 1], by the processor's own instruction if it is known to have one.

    LLVM would find it in the plain form, too, but not where it has moved a part of that out of a loop.
    """
    if has("avx512bw"):
        return call_intrinsic(builder, "llvm.x86.avx512.pmaddw.d.512", I32x16, [a, b])
    if has("avx2"):
        half = ir.VectorType(I32, LANES // 2)
        pairs = zip(halves(builder, a), halves(builder, b), strict=True)
        low, high = (call_intrinsic(builder, "llvm.x86.avx2.pmadd.wd", half, list(pair)) for pair in pairs)
        return _shuffled(builder, low, high, list(range(LANES)))
    products = builder.mul(builder.sext(a, _I32x32), builder.sext(b, _I32x32), flags=["nsw"])
    even, odd = (_shuffled(builder, products, products, list(range(start, N_WORDS, 2))) for start in (0, 1))
    return builder.add(even, odd)


def _add_dots(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, sums: ir.Value) -> ir.Value:
    return builder.add(_pairs_added(builder, a, b), sums)


interleave_low = _operation(_interleaved(0), words_type, words_type, words_type)
"""``interleave_low(a, b)``: a0 b0 a1 b1 .. a15 b15."""

interleave_high = _operation(_interleaved(LANES), words_type, words_type, words_type)
"""``interleave_high(a, b)``: a16 b16 .. a31 b31."""

add_dots = _operation(_add_dots, sums_type, words_type, words_type, sums_type)
"""``add_dots(a, b, sums)``: sums[i] + a[2 i] b[2 i] + a[2 i + 1] b[2 i + 1]."""

no_sums = _operation(lambda builder: ir.Constant(I32x16, None), sums_type)
"""``no_sums()``: sixteen zeros."""

to_float = _operation(lambda builder, sums: builder.sitofp(sums, F32x16), vector_type, sums_type)
"""``to_float(sums)``: as a ``Vector``."""
