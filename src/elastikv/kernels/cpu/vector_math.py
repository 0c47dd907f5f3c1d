"""Arithmetic on vectors (see ``vector.py``): operators, reductions and the exponential."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from elastikv.kernels.cpu.jit import inlined
from elastikv.kernels.cpu.vector import (
    I32,
    LANES,
    F32x16,
    I32x16,
    Vector,
    call_intrinsic,
    pointer,
    splat_value,
    vector_type,
)


@intrinsic
def splat(typing: Any, value: Any) -> Any:
    """All lanes the same."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return splat_value(builder, args[0])

    return vector_type(types.float32), emit


def _operation(name: str, n_args: int) -> Any:
    """An LLVM intrinsic of ``n_args`` vectors, lane by lane."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return call_intrinsic(builder, f"llvm.{name}.v{LANES}f32", F32x16, list(args))

    if n_args == 1:
        return intrinsic(lambda typing, a: (vector_type(vector_type), emit))
    if n_args == 2:
        return intrinsic(lambda typing, a, b: (vector_type(vector_type, vector_type), emit))
    return intrinsic(lambda typing, a, b, c: (vector_type(vector_type, vector_type, vector_type), emit))


fma = _operation("fma", 3)
absolute = _operation("fabs", 1)
round_even = _operation("rint", 1)


def _binary(method: str) -> Any:
    def define(typing: Any, a: Any, b: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            return getattr(builder, method)(*args)

        return vector_type(vector_type, vector_type), emit

    return intrinsic(define)


_add, _sub, _mul, _div = _binary("fadd"), _binary("fsub"), _binary("fmul"), _binary("fdiv")


def _overload_operator(function: Callable[..., Any], implementation: Any) -> None:
    @overload(function)
    def choose(a: Any, b: Any) -> Any:
        if a is not vector_type or b is not vector_type:
            return None

        def apply(a: Any, b: Any) -> Any:
            return implementation(a, b)

        return apply


_overload_operator(operator.add, _add)
_overload_operator(operator.sub, _sub)
_overload_operator(operator.mul, _mul)
_overload_operator(operator.truediv, _div)


def _chosen(builder: ir.IRBuilder, relation: str, a: ir.Value, b: ir.Value) -> ir.Value:
    """a where the relation holds, else b (also where one is NaN): one instruction on x86."""
    return builder.select(builder.fcmp_ordered(relation, a, b), a, b)


def _extreme(relation: str) -> Any:
    def define(typing: Any, a: Any, b: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            return _chosen(builder, relation, *args)

        return vector_type(vector_type, vector_type), emit

    return intrinsic(define)


maximum, minimum = _extreme(">"), _extreme("<")
"""``maximum(a, b)``, ``minimum(a, b)``: lane by lane; b where one is NaN."""


def halves(builder: ir.IRBuilder, value: ir.Value) -> tuple[ir.Value, ir.Value]:
    half = value.type.count // 2
    lanes = ir.VectorType(I32, half)
    low, high = (ir.Constant(lanes, list(range(start, start + half))) for start in (0, half))
    return builder.shuffle_vector(value, value, low), builder.shuffle_vector(value, value, high)


def _reduction(combine: Callable[..., ir.Value]) -> Any:
    """All lanes, combined half by half."""

    def define(typing: Any, value: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            value = args[0]
            while value.type.count > 1:
                value = combine(builder, *halves(builder, value))
            return builder.extract_element(value, I32(0))

        return types.float32(vector_type), emit

    return intrinsic(define)


sum_lanes = _reduction(lambda builder, a, b: builder.fadd(a, b))
max_lanes = _reduction(lambda builder, a, b: _chosen(builder, ">", a, b))


@intrinsic
def _power_of_two(typing: Any, exponent: Any) -> Any:
    """2 to a whole number in -126..127, by writing the exponent bits; 0 for -127."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        biased = builder.add(builder.fptosi(args[0], I32x16), ir.Constant(I32x16, [127] * LANES))
        return builder.bitcast(builder.shl(biased, ir.Constant(I32x16, [23] * LANES)), F32x16)

    return vector_type(vector_type), emit


@intrinsic
def store_sums(typing: Any, address: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Write the lane sums of four vectors to four consecutive float32.

    The vectors are folded together, so that four sums cost little more than one. Lanes stay within their quarter of a
    vector as long as they can: what crosses a quarter is slow on x86.
    """

    def fold(builder: ir.IRBuilder, x: ir.Value, y: ir.Value, low: list[int], high: list[int]) -> ir.Value:
        """Add two selections from the lanes of x (0 to 3) and y (4 to 7) of each quarter."""
        quarters = range(0, LANES, 4)
        left, right = (
            [quarter + (lane if lane < 4 else lane - 4 + LANES) for quarter in quarters for lane in lanes]
            for lanes in (low, high)
        )
        parts = (builder.shuffle_vector(x, y, ir.Constant(I32x16, lanes)) for lanes in (left, right))
        return builder.fadd(*parts)

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        address, a, b, c, d = args
        ab, cd = (fold(builder, x, y, [0, 4, 1, 5], [2, 6, 3, 7]) for x, y in ((a, b), (c, d)))
        folded = fold(builder, ab, cd, [0, 1, 4, 5], [2, 3, 6, 7])  # lanes: a b c d a b c d ...
        while folded.type.count > 4:
            folded = builder.fadd(*halves(builder, folded))
        builder.store(folded, pointer(builder, address), align=4)
        return context.get_dummy_value()

    return types.void(types.intp, vector_type, vector_type, vector_type, vector_type), emit


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


@inlined
def sigmoid(x: Vector) -> Vector:
    """1 / (1 + exp(-x)), lane by lane."""
    return splat(_ONE) / (splat(_ONE) + exp(splat(np.float32(0)) - x))


@inlined
def silu(x: Vector) -> Vector:
    """x / (1 + exp(-x)), lane by lane."""
    return x / (splat(_ONE) + exp(splat(np.float32(0)) - x))
