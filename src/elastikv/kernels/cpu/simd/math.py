"""Arithmetic on vectors: operators, reductions, the exponential and what is made of it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import overload

from elastikv.kernels.cpu.jit import inlined, typed
from elastikv.kernels.cpu.simd.vector import (
    I32,
    LANES,
    F32x16,
    I32x16,
    Vector,
    call_intrinsic,
    halves,
    operation,
    pointer,
    shuffled,
    splat_value,
    vector_type,
)

splat = operation(vector_type, types.float32)(splat_value)
"""``splat(value)``: all lanes the same."""


def _intrinsic(name: str, n_arguments: int) -> Any:
    """An LLVM intrinsic, lane by lane."""

    def emit(builder: ir.IRBuilder, *values: ir.Value) -> ir.Value:
        return call_intrinsic(builder, f"llvm.{name}.v{LANES}f32", F32x16, list(values))

    return operation(vector_type, *[vector_type] * n_arguments)(emit)


fma = _intrinsic("fma", 3)
"""``fma(a, b, c)``: ``a * b + c``, rounded once."""

absolute = _intrinsic("fabs", 1)
"""``absolute(a)``."""

round_even = _intrinsic("rint", 1)
"""``round_even(a)``: to the nearest integer, ties to even."""


def _overload_operator(function: Callable[..., Any], method: str) -> None:
    """``a + b`` and the like, of two vectors."""

    @operation(vector_type, vector_type, vector_type)
    def implementation(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
        return getattr(builder, method)(a, b)

    @typed(overload(function))
    def choose(a: Any, b: Any) -> Any:
        if a is not vector_type or b is not vector_type:
            return None

        def apply(a: Any, b: Any) -> Any:
            return implementation(a, b)

        return apply


_overload_operator(operator.add, "fadd")
_overload_operator(operator.sub, "fsub")
_overload_operator(operator.mul, "fmul")
_overload_operator(operator.truediv, "fdiv")


def _chosen(builder: ir.IRBuilder, relation: str, a: ir.Value, b: ir.Value) -> ir.Value:
    """a where the relation holds, else b (also where one is NaN): one instruction on x86."""
    return builder.select(builder.fcmp_ordered(relation, a, b), a, b)


@operation(vector_type, vector_type, vector_type)
def maximum(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """``maximum(a, b)``, lane by lane; b where one is NaN."""
    return _chosen(builder, ">", a, b)


@operation(vector_type, vector_type, vector_type)
def minimum(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """``minimum(a, b)``, lane by lane; b where one is NaN."""
    return _chosen(builder, "<", a, b)


def _reduce(builder: ir.IRBuilder, value: ir.Value, combine: Callable[..., ir.Value]) -> ir.Value:
    """All lanes, combined half by half."""
    while value.type.count > 1:
        value = combine(builder, *halves(builder, value))
    return builder.extract_element(value, I32(0))


@operation(types.float32, vector_type)
def sum_lanes(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """``sum_lanes(value)``."""
    return _reduce(builder, value, lambda builder, a, b: builder.fadd(a, b))


@operation(types.float32, vector_type)
def max_lanes(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """``max_lanes(value)``."""
    return _reduce(builder, value, lambda builder, a, b: _chosen(builder, ">", a, b))


@operation(types.void, types.intp, *[vector_type] * 4)
def store_sums(builder: ir.IRBuilder, address: ir.Value, a: ir.Value, b: ir.Value, c: ir.Value, d: ir.Value) -> None:
    """``store_sums(address, a, b, c, d)``: write the lane sums of four vectors to four consecutive float32.

    The vectors are folded together, so that four sums cost little more than one. Lanes stay within their quarter of a
    vector as long as they can: what crosses a quarter is slow on x86.
    """

    def fold(x: ir.Value, y: ir.Value, low: list[int], high: list[int]) -> ir.Value:
        """Add two selections from the lanes of x (0 to 3) and y (4 to 7) of each quarter."""
        quarters = range(0, LANES, 4)
        left, right = (
            [quarter + (lane if lane < 4 else lane - 4 + LANES) for quarter in quarters for lane in lanes]
            for lanes in (low, high)
        )
        return builder.fadd(*(shuffled(builder, x, y, lanes) for lanes in (left, right)))

    ab, cd = (fold(x, y, [0, 4, 1, 5], [2, 6, 3, 7]) for x, y in ((a, b), (c, d)))
    folded = fold(ab, cd, [0, 1, 4, 5], [2, 3, 6, 7])  # lanes: a b c d a b c d ...
    while folded.type.count > 4:
        folded = builder.fadd(*halves(builder, folded))
    builder.store(folded, pointer(builder, address), align=4)


@operation(vector_type, vector_type)
def _power_of_two(builder: ir.IRBuilder, exponent: ir.Value) -> ir.Value:
    """2 to an integer in -126..127, by writing the exponent bits; 0 for -127."""
    biased = builder.add(builder.fptosi(exponent, I32x16), ir.Constant(I32x16, [127] * LANES))
    return builder.bitcast(builder.shl(biased, ir.Constant(I32x16, [23] * LANES)), F32x16)


# exp(x) = 2^n * exp(r), n = round(x / ln 2), |r| <= ln 2 / 2; ln 2 in two parts so that r stays exact.
# The lowest x has n = -127: zero. A tiny number instead would make products with it denormal, and those slow.
_LOWEST, _HIGHEST = np.float32(-88.0), np.float32(88.0)
_LOG2_E = np.float32(1 / math.log(2))
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(math.log(2) - 0.693359375)
_C2, _C3, _C4, _C5, _C6 = (np.float32(1 / math.factorial(n)) for n in range(2, 7))
_ONE = np.float32(1)


@inlined
def exp(x: Vector) -> Vector:
    """exp of every lane, to about 1e-7 relative; 0 from -87.7 down."""
    x = minimum(maximum(x, splat(_LOWEST)), splat(_HIGHEST))
    n = round_even(x * splat(_LOG2_E))
    r = fma(n, splat(-_LN2_LOW), fma(n, splat(-_LN2_HIGH), x))
    p = fma(splat(_C6), r, splat(_C5))
    p = fma(p, r, splat(_C4))
    p = fma(p, r, splat(_C3))
    p = fma(p, r, splat(_C2))
    p = fma(p, r, splat(_ONE))
    p = fma(p, r, splat(_ONE))
    return p * _power_of_two(n)


# 2^x = 2^n * 2^r, n = round(x), |r| <= 1/2. Adding _SHIFTER rounds to n, and leaves n + 127 in the lowest bits.
_SHIFTER = np.float32(1.5 * 2**23 + 127)
_SMALLEST = np.float32(-60)
_D1, _D2, _D3, _D4, _D5 = (
    np.float32(c)
    for c in (0.6931470036506653, 0.24022242426872253, 0.05550733581185341, 0.009671512991189957, 0.0013264723820611835)
)


@operation(vector_type, vector_type, vector_type, vector_type)
def _scale_weight(builder: ir.IRBuilder, mantissa: ir.Value, shifted: ir.Value, x: ir.Value) -> ir.Value:
    """mantissa * 2^n, n in the lowest bits of ``shifted``; 0 where x is below _SMALLEST."""
    bits = builder.shl(builder.bitcast(shifted, I32x16), ir.Constant(I32x16, [23] * LANES))
    value = builder.fmul(mantissa, builder.bitcast(bits, F32x16))
    smallest = ir.Constant(F32x16, [float(_SMALLEST)] * LANES)
    return builder.select(builder.fcmp_ordered(">", x, smallest), value, ir.Constant(F32x16, None))


@inlined
def weight_of(x: Vector) -> Vector:
    """2^x for a softmax, x at most 0, to about 2e-7 relative; exactly 0 below 2^-60, and exactly 1 at 0.

    Smaller weights would add nothing, but what they are multiplied with may be denormal, which is slow.
    The polynomial is a minimax fit of 2^r, relative, with 2^0 = 1.
    """
    shifted = x + splat(_SHIFTER)
    r = x - (shifted - splat(_SHIFTER))
    p = fma(splat(_D5), r, splat(_D4))
    p = fma(p, r, splat(_D3))
    p = fma(p, r, splat(_D2))
    p = fma(p, r, splat(_D1))
    p = fma(p, r, splat(_ONE))
    return _scale_weight(p, shifted, x)


@inlined
def sigmoid(x: Vector) -> Vector:
    """1 / (1 + exp(-x)), lane by lane."""
    return splat(_ONE) / (splat(_ONE) + exp(splat(np.float32(0)) - x))


@inlined
def silu(x: Vector) -> Vector:
    """x / (1 + exp(-x)), lane by lane."""
    return x / (splat(_ONE) + exp(splat(np.float32(0)) - x))
