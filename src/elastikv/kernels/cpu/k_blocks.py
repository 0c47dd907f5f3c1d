"""GGUF's k-quants as layouts: blocks of 256 values in eight parts, with small whole-number scales of their own.

    q4_k  144 bytes: d, dmin (float16); 12 bytes of 6-bit scales and minima; 128 bytes of nibbles
    q5_k  176 bytes: the same, with 32 bytes of fifth bits in front of the nibbles
    q6_k  210 bytes: 128 bytes of nibbles; 64 bytes of fifth and sixth bits; 16 int8 scales; d (float16)

In q4_k and q5_k a value is ``d scale q - dmin minimum``, with a scale and a minimum for each part; two parts share 32
bytes, the first has their low nibbles. In q6_k it is ``d scale (q - 32)``, with a scale for each half of a part; four
parts share 64 bytes, the first two have their low nibbles. The format is that of ggml-quants.h.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from elastikv.kernels.cpu.blocks import add_products
from elastikv.kernels.cpu.jit import inlined
from elastikv.kernels.cpu.layouts import BLOCK, Layout, load
from elastikv.kernels.cpu.vector import (
    LANES,
    F32x16,
    I32x16,
    Vector,
    load_byte,
    load_f32,
    load_half,
    load_signed_byte,
    pointer,
    splat_value,
    vector_type,
)
from elastikv.kernels.cpu.vector_math import fma, splat

_K_BLOCK = 256

Q4_K_BLOCKS = Layout("q4_k blocks", 0, block=(_K_BLOCK, 144))
Q5_K_BLOCKS = Layout("q5_k blocks", 0, block=(_K_BLOCK, 176))
Q6_K_BLOCKS = Layout("q6_k blocks", 0, block=(_K_BLOCK, 210))

_K_LABELS = {Q4_K_BLOCKS.label, Q5_K_BLOCKS.label, Q6_K_BLOCKS.label}


@intrinsic
def _load_bits(typing: Any, low: Any, low_shift: Any, high: Any, high_shift: Any, n_high: Any) -> Any:
    """Sixteen whole numbers: four bits each from the bytes at ``low``, and n_high bits above from those at ``high``.

    The shifts say where in their bytes the bits are.
    """

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        low, low_shift, high, high_shift, n_high = args

        def constant(value: int) -> ir.Constant:
            return ir.Constant(I32x16, [value] * LANES)

        def spread(value: ir.Value) -> ir.Value:
            return splat_value(builder, builder.trunc(value, ir.IntType(32)))

        def bits(address: ir.Value, shift: ir.Value, mask: ir.Value) -> ir.Value:
            raw = builder.load(pointer(builder, address), align=1, typ=ir.VectorType(ir.IntType(8), LANES))
            return builder.and_(builder.lshr(builder.zext(raw, I32x16), spread(shift)), mask)

        below = bits(low, low_shift, constant(15))
        above = bits(high, high_shift, builder.sub(builder.shl(constant(1), spread(n_high)), constant(1)))
        return builder.sitofp(builder.or_(below, builder.shl(above, constant(4))), F32x16)

    return vector_type(*(types.intp,) * 5), emit


@inlined
def _scale_and_minimum(packed: int, part: int) -> tuple[int, int]:
    """Both have 6 bits: those of parts 0 to 3 lie in bytes 0 to 7, whose upper two bits belong to parts 4 to 7."""
    if part < 4:
        return load_byte(packed + part) & 63, load_byte(packed + part + 4) & 63
    low = load_byte(packed + part + 4)
    scale = (low & 15) | (load_byte(packed + part - 4) >> 6 << 4)
    return scale, (low >> 4) | (load_byte(packed + part) >> 6 << 4)


def _half_part(layout: Any, block: int, part: int, half: int) -> Vector:
    """Sixteen values of a block, from ``32 part + 16 half`` on."""
    raise NotImplementedError


@overload(_half_part)
def _choose_half_part(layout: Any, block: Any, part: Any, half: Any) -> Any:
    n_high = 1 if layout.label == Q5_K_BLOCKS.label else 0

    def with_minimum(layout: Any, block: Any, part: Any, half: Any) -> Any:
        scale, minimum = _scale_and_minimum(block + 4, part)
        factor = load_half(block) * np.float32(scale)
        offset = load_half(block + 2) * np.float32(-minimum)
        nibbles = block + 16 + n_high * 32 + part // 2 * 32 + half * 16
        whole = _load_bits(nibbles, part % 2 * 4, block + 16 + half * 16, part, n_high)
        return fma(whole, splat(factor), splat(offset))

    def centred(layout: Any, block: Any, part: Any, half: Any) -> Any:
        factor = load_half(block + 208) * np.float32(load_signed_byte(block + 192 + part * 2 + half))
        nibbles = block + part // 4 * 64 + part % 2 * 32 + half * 16
        upper = block + 128 + part // 4 * 32 + half * 16
        whole = _load_bits(nibbles, part // 2 % 2 * 4, upper, part % 4 * 2, 2)
        return fma(whole, splat(factor), splat(np.float32(-32) * factor))

    return centred if layout.label == Q6_K_BLOCKS.label else with_minimum


@overload(add_products)
def _add_products(layout: Any, row: Any, start: Any, x: Any, sums: Any) -> Any:
    if layout.label not in _K_LABELS:
        return None
    size = layout.block[1]

    def of_part(layout: Any, row: Any, start: Any, x: Any, sums: Any) -> Any:
        block, part = row + start // _K_BLOCK * size, start % _K_BLOCK // BLOCK
        sums = fma(_half_part(layout, block, part, 0), load_f32(x), sums)
        return fma(_half_part(layout, block, part, 1), load_f32(x + 64), sums)

    return of_part


@overload(load)
def _load(layout: Any, row: Any, scales: Any, start: Any) -> Any:
    if layout.label not in _K_LABELS:
        return None
    size = layout.block[1]

    def of_part(layout: Any, row: Any, scales: Any, start: Any) -> Any:
        block, part = row + start // _K_BLOCK * size, start % _K_BLOCK // BLOCK
        return _half_part(layout, block, part, start % BLOCK // LANES)

    return of_part
