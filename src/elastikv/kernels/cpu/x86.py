"""Products of 16-bit and 8-bit values, as x86 processors with AVX-512 BF16 and VNNI have them.

Only kernels whose callers asked ``has_bf16`` or ``has_vnni`` may use them; each has a twin that needs neither. The
instructions are written as such because LLVM's own names for them change from release to release.
"""

from __future__ import annotations

import functools
from typing import Any

import llvmlite.binding
import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, overload, register_model

from elastikv.kernels.cpu.blocks import Q4_0_BLOCKS, Q8_0_BLOCKS
from elastikv.kernels.cpu.layouts import load
from elastikv.kernels.cpu.vector import LANES, F32x16, I32x16, Vector, pointer, vector_type

_I16x32 = ir.VectorType(ir.IntType(16), 2 * LANES)
_I8 = ir.IntType(8)

# Also a function that only calls such kernels, loaded from disk, is compiled together with their text.
llvmlite.binding.initialize_native_asmparser()


@functools.cache
def _features() -> dict[str, bool]:
    """What numba compiles for: this processor, or the features that NUMBA_CPU_FEATURES names (``+avx2,+fma``)."""
    named = numba.config.CPU_FEATURES
    if named is None:
        return dict(llvmlite.binding.get_host_cpu_features())
    return {feature[1:]: feature[0] == "+" for feature in named.split(",") if feature}


def has_bf16() -> bool:
    """Whether ``dot_pairs`` runs here."""
    return _features().get("avx512bf16", False)


def has_vnni() -> bool:
    """Whether ``dot_blocks`` runs here."""
    return _features().get("avx512vnni", False)


class PairsType(types.Type):
    """numba's type of 32 bfloat16 values."""

    def __init__(self) -> None:
        super().__init__(name="bf16x32")


pairs_type = PairsType()


@register_model(PairsType)
class _PairsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, frontend_type: types.Type) -> None:
        super().__init__(manager, frontend_type, _I16x32)


def _instruction(builder: ir.IRBuilder, text: str, result: ir.Type, constraint: str, args: list[ir.Value]) -> ir.Value:
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
        return _instruction(builder, "vcvtne2ps2bf16 $1, $2, $0", _I16x32, "=v,v,v", [low, high])

    return pairs_type(vector_type, vector_type), emit


@intrinsic
def dot_pairs(typing: Any, a: Any, b: Any, sums: Any) -> Any:
    """``sums + a * b``, two neighbouring products to each of the sixteen float32 sums."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        a, b, sums = args
        return _instruction(builder, "vdpbf16ps $3, $2, $0", F32x16, "=v,0,v,v", [sums, a, b])

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


def _load_bytes(builder: ir.IRBuilder, address: ir.Value, offset: int, count: int) -> ir.Value:
    place = builder.add(address, ir.Constant(address.type, offset))
    return builder.load(pointer(builder, place), align=1, typ=ir.VectorType(_I8, count))


def _join(builder: ir.IRBuilder, low: ir.Value, high: ir.Value) -> ir.Value:
    lanes = list(range(2 * low.type.count))
    return builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes))


def _constant(like: ir.Value, value: int) -> ir.Constant:
    return ir.Constant(like.type, [value] * like.type.count)


def _unsigned_q8_0(builder: ir.IRBuilder, blocks: ir.Value) -> ir.Value:
    """The 64 values of two blocks, 128 too large: first block, second block."""
    values = _join(builder, _load_bytes(builder, blocks, 2, 32), _load_bytes(builder, blocks, 36, 32))
    return builder.xor(values, _constant(values, -128))


def _unsigned_q4_0(builder: ir.IRBuilder, blocks: ir.Value) -> ir.Value:
    """The 64 values of two blocks, 8 too large: low halves of both blocks, then high halves of both."""
    raw = _join(builder, _load_bytes(builder, blocks, 2, 16), _load_bytes(builder, blocks, 20, 16))
    return _join(builder, builder.and_(raw, _constant(raw, 15)), builder.lshr(raw, _constant(raw, 4)))


def _dot_blocks(unsigned: Any, block_bytes: int, block_of_lane: list[int]) -> Any:
    def define(typing: Any, blocks: Any, x: Any, start: Any, x_scales: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            blocks, x, start, x_scales = args
            x_bytes = builder.load(pointer(builder, x), align=1, typ=ir.VectorType(_I8, 64))
            sums = builder.load(pointer(builder, start), align=1, typ=I32x16)
            operands = [sums, unsigned(builder, blocks), x_bytes]
            sums = _instruction(builder, "vpdpbusd $3, $2, $0", I32x16, "=v,0,v,v", operands)
            halves = ir.Constant(ir.VectorType(ir.HalfType(), 2), ir.Undefined)
            for index in range(2):
                place = builder.add(blocks, ir.Constant(blocks.type, index * block_bytes))
                half = builder.load(pointer(builder, place), align=1, typ=ir.HalfType())
                halves = builder.insert_element(halves, half, ir.IntType(32)(index))
            scales = builder.fpext(halves, ir.VectorType(ir.FloatType(), 2))
            scales = builder.shuffle_vector(scales, scales, ir.Constant(I32x16, block_of_lane))
            both = builder.fmul(scales, builder.load(pointer(builder, x_scales), align=1, typ=F32x16))
            return builder.fmul(builder.sitofp(sums, F32x16), both)

        return vector_type(types.intp, types.intp, types.intp, types.intp), emit

    return intrinsic(define)


_dot_q8_0 = _dot_blocks(_unsigned_q8_0, 34, [0] * 8 + [1] * 8)
_dot_q4_0 = _dot_blocks(_unsigned_q4_0, 18, ([0] * 4 + [1] * 4) * 2)


def dot_blocks(layout: Any, blocks: int, x: int, start: int, x_scales: int) -> Vector:
    """Two neighbouring blocks of packed weights times 64 int8 values, as sixteen float32 whose sum is the product.

    x, start, x_scales: as ``gemv_int8`` lays them out for this layout.
    """
    raise NotImplementedError


@overload(dot_blocks)
def _choose_dot_blocks(layout: Any, blocks: Any, x: Any, start: Any, x_scales: Any) -> Any:
    implementation = {Q8_0_BLOCKS.label: _dot_q8_0, Q4_0_BLOCKS.label: _dot_q4_0}[layout.label]

    def dot(layout: Any, blocks: Any, x: Any, start: Any, x_scales: Any) -> Any:
        return implementation(blocks, x, start, x_scales)

    return dot
