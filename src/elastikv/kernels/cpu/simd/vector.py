"""The types that kernels compute with, and how their operations are made of LLVM's instructions.

A ``Vector`` is an LLVM value ``<16 x float>``; LLVM lowers it to what the processor has (one AVX-512
register, two of AVX2, four of NEON), so nothing depends on x86 that does not say so. Addresses are plain
integers, in bytes, and may be unaligned.

    acc = fma(load_f16(address), load_f32(other), acc)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 16

Vector = Any
"""In annotations of kernels: sixteen float32 values."""

Scalar = Any
"""In annotations of kernels: one float32 value."""

Int16Vector = Any
"""In annotations of kernels: thirty-two int16 values."""

Int32Vector = Any
"""In annotations of kernels: sixteen int32 values."""

I8 = ir.IntType(8)
I16 = ir.IntType(16)
I32 = ir.IntType(32)
I64 = ir.IntType(64)
F16 = ir.HalfType()
F32 = ir.FloatType()
F32x16 = ir.VectorType(F32, LANES)
I32x16 = ir.VectorType(I32, LANES)
I16x32 = ir.VectorType(I16, 2 * LANES)


class VectorType(types.Type):
    """numba's type of a vector."""


_LLVM_TYPES = {"f32x16": F32x16, "i32x16": I32x16, "i16x32": I16x32, "bf16x32": I16x32}

vector_type, int32_type, int16_type, bf16_type = (VectorType(name) for name in _LLVM_TYPES)
"""numba's types of sixteen float32 and int32, of thirty-two int16 and bfloat16."""


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, frontend_type: types.Type) -> None:
        super().__init__(manager, frontend_type, _LLVM_TYPES[frontend_type.name])


def operation(result: types.Type, *arguments: types.Type) -> Callable[[Callable[..., ir.Value | None]], Any]:
    """Decorates ``emit(builder, *values)``, which writes LLVM code: makes it a function that kernels call.

    result, arguments: numba's types; a void operation returns nothing.
    """
    names = ["typing", *"abcdefghi"[: len(arguments)]]
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]

    def decorate(emit: Callable[..., ir.Value | None]) -> Any:
        def code(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            value = emit(builder, *args)
            return context.get_dummy_value() if result is types.void else value

        def define(typing: Any, *_: Any) -> Any:
            return result(*arguments), code

        define.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        define.__name__, define.__doc__ = emit.__name__, emit.__doc__
        return intrinsic(define)

    return decorate


# --- what operations are written with


def pointer(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """An address as LLVM loads from it and stores to it."""
    return builder.inttoptr(address, ir.PointerType())


def call_intrinsic(builder: ir.IRBuilder, name: str, result: ir.Type, args: list[ir.Value]) -> ir.Value:
    """Call an LLVM intrinsic."""
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, [arg.type for arg in args]), name)
    return builder.call(function, args)


def assembly(builder: ir.IRBuilder, text: str, result: ir.Type, constraint: str, args: list[ir.Value]) -> ir.Value:
    """One machine instruction, written as text."""
    return builder.asm(ir.FunctionType(result, [arg.type for arg in args]), text, constraint, args, side_effect=False)


def splat_value(builder: ir.IRBuilder, scalar: ir.Value, n_lanes: int = LANES) -> ir.Value:
    """A vector whose lanes are all ``scalar``."""
    vector = ir.VectorType(scalar.type, n_lanes)
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, I32(0))
    return builder.shuffle_vector(
        single, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(I32, n_lanes), [0] * n_lanes)
    )


def first_lanes(builder: ir.IRBuilder, count: ir.Value, n_lanes: int = LANES) -> ir.Value:
    """A mask of the lanes below ``count``."""
    lanes = ir.Constant(ir.VectorType(I32, n_lanes), list(range(n_lanes)))
    return builder.icmp_unsigned("<", lanes, splat_value(builder, builder.trunc(count, I32), n_lanes))


def shuffled(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, lanes: list[int]) -> ir.Value:
    """Lanes of a and b by number: those of b follow those of a."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def halves(builder: ir.IRBuilder, value: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The lower and the upper lanes."""
    lanes = list(range(value.type.count))
    middle = value.type.count // 2
    return shuffled(builder, value, value, lanes[:middle]), shuffled(builder, value, value, lanes[middle:])
