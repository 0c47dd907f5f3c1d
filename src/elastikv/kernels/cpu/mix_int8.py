"""Weighted sums of q8_0 V rows, as whole numbers: what ``tiles.mix_floats`` does for the other layouts.

A cell's weight times its block's scale is rounded to 16 bits, relative to the largest of 64 cells. Then one instruction
multiplies and adds two cells' values, and eight cells' sums become float32 at a time.

Scratch, for each block of 32 values: per K head 64 scales in float16; per query head 64 weights in int16, and what
one of these is worth in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from elastikv.kernels.cpu.jit import inlined
from elastikv.kernels.cpu.layouts import BLOCK
from elastikv.kernels.cpu.tiles import BLOCK_CELLS, SCORE_STRIDE, offset_all, prefetch_ahead, tile_rows
from elastikv.kernels.cpu.vector import copy_half, load_f16, load_f32, load_float, store_f32, store_float, store_i16
from elastikv.kernels.cpu.vector_math import fma, max_lanes, maximum, round_even, splat
from elastikv.kernels.cpu.words import (
    Sums,
    Words,
    add_dots,
    interleave_high,
    interleave_low,
    load_i8_block,
    no_sums,
    splat_pair,
    to_float,
)

_ROW = BLOCK_CELLS * 2
"""Bytes of 64 scales, or of 64 weights."""
_LARGEST = np.float32(32767)
_ZERO = np.float32(0)


@register_jitable
def mix_int8_floats(n_kv_heads: int, n_heads: int, dv: int) -> int:
    """float32 values of scratch that one part needs; n_heads: padded."""
    return (dv + BLOCK - 1) // BLOCK * (n_kv_heads * BLOCK_CELLS // 2 + n_heads * (BLOCK_CELLS // 2 + 1))


@inlined
def _transpose_scales(scales: int, n: int, begin: int, end: int, out: int) -> None:
    """``[cell, n]`` of cells ``begin..end`` as ``[n, 64]``. Behind them the last is repeated: weights are 0 there."""
    for cell in range(BLOCK_CELLS):
        source = scales + min(begin + cell, end - 1) * n * 2
        for index in range(n):
            copy_half(source + index * 2, out + index * _ROW + cell * 2)


@inlined
def _round_weights(weights: int, scales: int, out: int, unit: int) -> None:
    """64 weights times their scales as int16, and what one of these is worth."""
    a, b = load_f32(weights) * load_f16(scales), load_f32(weights + 64) * load_f16(scales + 32)
    c, d = load_f32(weights + 128) * load_f16(scales + 64), load_f32(weights + 192) * load_f16(scales + 96)
    top = max_lanes(maximum(maximum(a, b), maximum(c, d)))
    inverse = splat(_LARGEST / top if top > 0 else _ZERO)
    store_i16(out, round_even(a * inverse))
    store_i16(out + 32, round_even(b * inverse))
    store_i16(out + 64, round_even(c * inverse))
    store_i16(out + 96, round_even(d * inverse))
    store_float(unit, top / _LARGEST)


@inlined
def _paired(rows: Any, start: int, width: int) -> tuple[Words, Words, Words, Words]:
    """A block of four cells: values of cells 0 and 1 side by side, low half and high half, then of 2 and 3."""
    a, b = load_i8_block(rows[0], start, width), load_i8_block(rows[1], start, width)
    c, d = load_i8_block(rows[2], start, width), load_i8_block(rows[3], start, width)
    return (interleave_low(a, b), interleave_high(a, b), interleave_low(c, d), interleave_high(c, d))


@inlined
def _weighted(pairs: Any, weights: int, low: Sums, high: Sums) -> tuple[Sums, Sums]:
    """``low`` and ``high`` plus a block of four cells times their weights."""
    w, x = splat_pair(weights), splat_pair(weights + 4)
    low = add_dots(pairs[2], x, add_dots(pairs[0], w, low))
    high = add_dots(pairs[3], x, add_dots(pairs[1], w, high))
    return low, high


@inlined
def _add_scaled(sums: int, whole: Sums, unit: float) -> None:
    store_f32(sums, fma(to_float(whole), splat(unit), load_f32(sums)))


@inlined
def mix_int8(values: int, scales: int, begin: int, end: int, weights: int, sums: int, scratch: int, shape: Any) -> None:
    """Add the weighted V rows of cells ``begin..end`` to the sums of all heads."""
    n_kv_heads, group, _, _, dv, wide_v = shape
    blocks = (dv + BLOCK - 1) // BLOCK
    words = scratch + n_kv_heads * blocks * _ROW
    units = words + n_kv_heads * group * blocks * _ROW
    _transpose_scales(scales, n_kv_heads * blocks, begin, end, scratch)
    for query in range(n_kv_heads * group):
        for block in range(blocks):
            row_scales, index = scratch + (query // group * blocks + block) * _ROW, query * blocks + block
            _round_weights(weights + query * SCORE_STRIDE, row_scales, words + index * _ROW, units + index * 4)
    cell_bytes = n_kv_heads * dv
    for cell in range(begin, end, 8):
        first = tile_rows(values, cell_bytes, cell, end - 1)
        second = tile_rows(values, cell_bytes, cell + 4, end - 1)
        for head in range(n_kv_heads):
            prefetch_ahead(values + cell * cell_bytes + head * 8 * dv, 8 * dv)
            for block in range(blocks):
                start = block * BLOCK
                a = _paired(offset_all(first, head * dv), start, dv)
                b = _paired(offset_all(second, head * dv), start, dv)
                for query in range(head * group, (head + 1) * group):
                    index = query * blocks + block
                    w = words + index * _ROW + (cell - begin) * 2
                    low, high = _weighted(a, w, no_sums(), no_sums())
                    low, high = _weighted(b, w + 8, low, high)
                    unit, target = load_float(units + index * 4), sums + (query * wide_v + start) * 4
                    _add_scaled(target, low, unit)
                    _add_scaled(target + 64, high, unit)
