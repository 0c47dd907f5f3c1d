"""Writing panels, see ``word_tile``: sixteen columns' words next to each other."""

from __future__ import annotations

from llvmlite import ir
from numba import types

from elastikv.kernels.cpu.simd.vector import LANES, I32x16, operation, pointer, shuffled, vector_type


@operation(types.void, types.intp, types.intp, types.intp)
def transpose_words(builder: ir.IRBuilder, source: ir.Value, stride: ir.Value, out: ir.Value) -> None:
    """``transpose_words(source, stride, out)``: sixteen words of sixteen rows, ``stride`` bytes apart, to a panel.

    Blocks of two by two are exchanged, whose size is halved from step to step.
    """
    rows = [builder.add(source, builder.mul(stride, ir.Constant(stride.type, row))) for row in range(LANES)]
    values = [builder.load(pointer(builder, row), align=1, typ=I32x16) for row in rows]
    for size in (8, 4, 2, 1):
        upper = [lane & size for lane in range(LANES)]
        first = [lane - size + LANES if upper[lane] else lane for lane in range(LANES)]
        second = [lane + LANES if upper[lane] else lane + size for lane in range(LANES)]
        for index in range(LANES):
            if not index & size:
                a, b = values[index], values[index + size]
                values[index], values[index + size] = (shuffled(builder, a, b, lanes) for lanes in (first, second))
    for word, value in enumerate(values):
        place = builder.add(out, ir.Constant(out.type, 64 * word))
        builder.store(value, pointer(builder, place), align=1)


@operation(types.void, types.intp, vector_type, vector_type)
def store_pairs(builder: ir.IRBuilder, address: ir.Value, a: ir.Value, b: ir.Value) -> None:
    """``store_pairs(address, a, b)``: sixteen pairs of int16, from integers in float32."""
    low, high = (builder.fptosi(each, I32x16) for each in (a, b))
    low = builder.and_(low, ir.Constant(I32x16, [0xFFFF] * LANES))
    high = builder.shl(high, ir.Constant(I32x16, [16] * LANES))
    builder.store(builder.or_(low, high), pointer(builder, address), align=1)
