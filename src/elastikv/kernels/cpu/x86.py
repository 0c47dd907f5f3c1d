"""Products of 16-bit and 8-bit values, as x86 processors with AVX-512 BF16 and VNNI have them.

Only kernels whose callers asked ``has_bf16`` or ``has_vnni`` may use them; each has a twin that needs neither. The
instructions are written as such because LLVM's own names for them change from release to release.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, overload, register_model

from elastikv.kernels.cpu.features import has
from elastikv.kernels.cpu.layouts import load
from elastikv.kernels.cpu.vector import LANES, F32x16, pointer, vector_type

_I16x32 = ir.VectorType(ir.IntType(16), 2 * LANES)

# Also a function that only calls such kernels, loaded from disk, is compiled together with their text.
llvmlite.binding.initialize_native_asmparser()


def has_bf16() -> bool:
    """Whether ``dot_pairs`` runs here."""
    return has("avx512bf16")


def has_vnni() -> bool:
    """Whether ``vnni.dot_group`` runs here."""
    return has("avx512vnni")


class PairsType(types.Type):
    """numba's type of 32 bfloat16 values."""

    def __init__(self) -> None:
        super().__init__(name="bf16x32")


pairs_type = PairsType()


@register_model(PairsType)
class _PairsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, frontend_type: types.Type) -> None:
        super().__init__(manager, frontend_type, _I16x32)


def instruction(builder: ir.IRBuilder, text: str, result: ir.Type, constraint: str, args: list[ir.Value]) -> ir.Value:
    return builder.asm(ir.FunctionType(result, [arg.type for arg in args]), text, constraint, args, side_effect=False)


@intrinsic
def _load_bf16_pairs(typing: Any, address: Any) -> Any:
    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.load(pointer(builder, args[0]), align=1, typ=_I16x32)

    return pairs_type(types.intp), emit


@intrinsic
def _round_to_pairs(typing: Any, low: Any, high: Any) -> Any:
    """Two vectors as one of bfloat16, low first."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        low, high = args
        return instruction(builder, "vcvtne2ps2bf16 $1, $2, $0", _I16x32, "=v,v,v", [low, high])

    return pairs_type(vector_type, vector_type), emit


@intrinsic
def dot_pairs(typing: Any, a: Any, b: Any, sums: Any) -> Any:
    """``sums + a * b``, two neighbouring products to each of the sixteen float32 sums."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        a, b, sums = args
        return instruction(builder, "vdpbf16ps $3, $2, $0", F32x16, "=v,0,v,v", [sums, a, b])

    return vector_type(pairs_type, pairs_type, vector_type), emit


def load_pairs(layout: Any, row: int, start: int) -> Any:
    """Values ``start .. start + 31`` of a row, rounded to bfloat16; ``start`` is a multiple of 32."""
    raise NotImplementedError


@overload(load_pairs)
def _load_pairs(layout: Any, row: Any, start: Any) -> Any:
    if layout.label == "bf16":

        def as_they_are(layout: Any, row: Any, start: Any) -> Any:
            return _load_bf16_pairs(row + start * 2)

        return as_they_are

    def rounded(layout: Any, row: Any, start: Any) -> Any:
        return _round_to_pairs(load(layout, row, 0, start), load(layout, row, 0, start + LANES))

    return rounded
