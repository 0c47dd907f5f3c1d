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
    F32,
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
maximum = _operation("maxnum", 2)
minimum = _operation("minnum", 2)
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


def _reduction(name: str, start: float | None) -> Any:
    def define(typing: Any, value: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            arguments = [args[0]] if start is None else [F32(start), args[0]]
            intrinsic_name = f"llvm.vector.reduce.{name}.v{LANES}f32"
            return call_intrinsic(builder, intrinsic_name, F32, arguments, fastmath=("reassoc",))

        return types.float32(vector_type), emit

    return intrinsic(define)


sum_lanes = _reduction("fadd", -0.0)
max_lanes = _reduction("fmax", None)


@intrinsic
def _power_of_two(typing: Any, exponent: Any) -> Any:
    """2 to a whole number in -126..127, by writing the exponent bits."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        biased = builder.add(builder.fptosi(args[0], I32x16), ir.Constant(I32x16, [127] * LANES))
        return builder.bitcast(builder.shl(biased, ir.Constant(I32x16, [23] * LANES)), F32x16)

    return vector_type(vector_type), emit


@intrinsic
def store_sums(typing: Any, address: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Write the lane sums of four vectors to four consecutive float32.

    The vectors are folded together, half a vector at a time, so that four sums cost little more than one.
    """

    def fold(builder: ir.IRBuilder, x: ir.Value, y: ir.Value, group: int) -> ir.Value:
        """Add neighbouring groups of lanes; those of x and y alternate in the result."""
        n = x.type.count
        starts = [start + vector for start in range(0, n, 2 * group) for vector in (0, n)]
        left = [start + lane for start in starts for lane in range(group)]
        right = [lane + group for lane in left]
        parts = (builder.shuffle_vector(x, y, ir.Constant(I32x16, lanes)) for lanes in (left, right))
        return builder.fadd(*parts)

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        address, a, b, c, d = args
        folded = fold(builder, fold(builder, a, b, 1), fold(builder, c, d, 1), 2)  # lanes: a b c d a b c d ...
        while folded.type.count > 4:
            half = folded.type.count // 2
            parts = (range(half), range(half, 2 * half))
            low, high = (
                builder.shuffle_vector(folded, folded, ir.Constant(ir.VectorType(I32, half), list(part)))
                for part in parts
            )
            folded = builder.fadd(low, high)
        builder.store(folded, pointer(builder, address), align=4)
        return context.get_dummy_value()

    return types.void(types.intp, vector_type, vector_type, vector_type, vector_type), emit


# exp(x) = 2^n * exp(r), n = round(x / ln 2), |r| <= ln 2 / 2; ln 2 in two parts so that r stays exact.
_LOWEST, _HIGHEST = np.float32(-87.0), np.float32(88.0)
_LOG2_E = np.float32(1 / math.log(2))
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(math.log(2) - 0.693359375)
_C2, _C3, _C4, _C5, _C6 = (np.float32(1 / math.factorial(n)) for n in range(2, 7))
_ONE = np.float32(1)


@inlined
def exp(x: Vector) -> Vector:
    """exp of every lane, to about 1e-7 relative; below -87 the result is the smallest normal number."""
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
