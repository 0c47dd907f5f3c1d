"""Decode attention: single queries over their streams' cells, where these lie.

A row (one query token) sees a run of cells. The run is split into at most 16 parts; a part is the job of one
thread and covers all heads, so that a thread reads its cells front to back. Within a part, 64 cells
at a time: scores of all heads, a softmax with running maximum (Milakov and Gimelshein,
arXiv:1805.02867), then the weighted sum of V. At the end the parts of each row and head are combined.

How a run is split depends on its length alone, so results depend neither on the other rows nor on threads.

Scratch, in float32, per row: queries ``[n_heads, d]``; per row and part: sums ``[n_heads, dv]``, scores
``[n_heads, 64]``, maxima and totals ``[n_heads]``, and what the cells' layouts need. Here each group of query heads is
padded to 1, 2 or a multiple of 4, and d and dv to multiples of 32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numba.extending import register_jitable

from elastikv.kernels.cpu.attention.qk import qk_block
from elastikv.kernels.cpu.formats.cells import BLOCK_CELLS, SCORE_STRIDE, CellLayout
from elastikv.kernels.cpu.formats.layout import store_values
from elastikv.kernels.cpu.formats.plain import F32
from elastikv.kernels.cpu.jit import inlined, kernel, typed
from elastikv.kernels.cpu.simd.math import exp, fma, max_lanes, maximum, splat, sum_lanes
from elastikv.kernels.cpu.simd.memory import load_f32, load_float, store_f32, store_float
from elastikv.kernels.cpu.simd.vector import LANES, Scalar

MAX_PARTS = 16
_WIDTH_MULTIPLE = 32
_ZERO = np.float32(0)
_LOW = np.float32(-1e30)
"""Below every score, yet finite: exp(_LOW - anything) is 0 and _LOW - _LOW is not NaN."""


@typed(register_jitable)
def _padded_group(n_group: int) -> int:
    """Query heads per K head padded to what attention takes at a time."""
    return n_group if n_group <= 2 else (n_group + 3) // 4 * 4


@typed(register_jitable)
def _padded_width(width: int) -> int:
    """Whole vectors, and whole blocks of what layouts take at a time."""
    return (width + _WIDTH_MULTIPLE - 1) // _WIDTH_MULTIPLE * _WIDTH_MULTIPLE


@typed(register_jitable)
def _part_floats(k_layout: Any, v_layout: Any, n_kv_heads: int, n_heads: int, d: int, dv: int) -> int:
    """float32 values of scratch that one part needs; n_heads: padded."""
    for_scores: int = k_layout.qk_scratch_floats(n_kv_heads, d)
    for_sums: int = v_layout.pv_scratch_floats(n_kv_heads, n_heads, dv)
    return n_heads * (_padded_width(dv) + BLOCK_CELLS + 2) + max(for_scores, for_sums)


def scratch_floats(n_heads: int, n_kv_heads: int, d: int, dv: int, k_layout: CellLayout, v_layout: CellLayout) -> int:
    """float32 values of scratch that one row needs."""
    heads = n_kv_heads * _padded_group(n_heads // n_kv_heads)
    part = _part_floats(k_layout, v_layout, n_kv_heads, heads, d, dv)
    return heads * _padded_width(d) + MAX_PARTS * part


@inlined
def _part_cells(n_cells: int) -> int:
    """Cells per part: whole blocks, at most MAX_PARTS parts."""
    blocks = (n_cells + BLOCK_CELLS - 1) // BLOCK_CELLS
    return (blocks + MAX_PARTS - 1) // MAX_PARTS * BLOCK_CELLS


@inlined
def _scale_vector(address: int, width: int, factor: float) -> None:
    for start in range(0, width, LANES):
        store_f32(address + start * 4, load_f32(address + start * 4) * splat(factor))


@inlined
def _softmax_block(n_cells: int, n_heads: int, scores: int, sums: int, wide_v: int, maxima: int, totals: int) -> None:
    """Turn one block's scores into weights, relative to a maximum that grows; what is there is rescaled."""
    for head in range(n_heads):
        row = scores + head * SCORE_STRIDE
        for cell in range(n_cells, BLOCK_CELLS):
            store_float(row + cell * 4, _LOW)
        a, b = load_f32(row), load_f32(row + 64)
        c, d = load_f32(row + 128), load_f32(row + 192)
        before = load_float(maxima + head * 4)
        top = max(before, max_lanes(maximum(maximum(a, b), maximum(c, d))))
        base = splat(top)
        a, b, c, d = exp(a - base), exp(b - base), exp(c - base), exp(d - base)
        store_f32(row, a)
        store_f32(row + 64, b)
        store_f32(row + 128, c)
        store_f32(row + 192, d)
        total = sum_lanes((a + b) + (c + d))
        if top > before:
            shrink = np.exp(before - top)
            _scale_vector(sums + head * wide_v * 4, wide_v, shrink)
            total += load_float(totals + head * 4) * shrink
            store_float(maxima + head * 4, top)
        else:
            total += load_float(totals + head * 4)
        store_float(totals + head * 4, total)


@inlined
def _attend_part(
    k_layout: Any, v_layout: Any, addresses: Any, begin: int, end: int, q: int, part: int, shape: Any
) -> None:
    """Sums, maxima and totals of all heads over cells ``begin..end``."""
    n_kv_heads, group, _, _, _, wide_v = shape
    n_heads = n_kv_heads * group
    sums, scores = part, part + n_heads * wide_v * 4
    maxima = scores + n_heads * SCORE_STRIDE
    totals = maxima + n_heads * 4
    extra = totals + n_heads * 4
    for head in range(n_heads):
        for start in range(0, wide_v, LANES):
            store_f32(sums + (head * wide_v + start) * 4, splat(_ZERO))
        store_float(maxima + head * 4, _LOW)
        store_float(totals + head * 4, _ZERO)
    for block in range(begin, end, BLOCK_CELLS):
        stop = min(block + BLOCK_CELLS, end)
        qk_block(k_layout, addresses[0], addresses[2], block, stop, q, scores, extra, shape)
        _softmax_block(stop - block, n_heads, scores, sums, wide_v, maxima, totals)
        v_layout.add_weighted(addresses[1], addresses[3], block, stop, scores, sums, extra, shape)


@inlined
def _pad_query(k_layout: Any, q: int, head_stride: int, scale: Scalar, n_group: int, out: int, shape: Any) -> None:
    """Write one row's query heads, times ``scale``, in padded groups; padding is zero."""
    n_kv_heads, group, d, wide, _, _ = shape
    for head in range(n_kv_heads):
        for member in range(group):
            target = out + (head * group + member) * wide * 4
            for start in range(0, wide, LANES):
                store_f32(target + start * 4, splat(_ZERO))
            if member < n_group:
                k_layout.put_query(q + (head * n_group + member) * head_stride, d, wide, scale, target)


@inlined
def _combine(parts: int, part_bytes: int, n_parts: int, head: int, shape: Any, out: int) -> None:
    """One head's attention from the sums, maxima and totals of its parts."""
    n_kv_heads, group, _, _, dv, wide_v = shape
    n_heads = n_kv_heads * group
    maxima = parts + n_heads * (wide_v * 4 + SCORE_STRIDE) + head * 4
    totals = maxima + n_heads * 4
    sums = parts + head * wide_v * 4
    top = _LOW
    for part in range(n_parts):
        top = max(top, load_float(maxima + part * part_bytes))
    total = _ZERO
    for part in range(n_parts):
        weight = np.exp(load_float(maxima + part * part_bytes) - top)
        total += load_float(totals + part * part_bytes) * weight
        store_float(maxima + part * part_bytes, weight)
    for start in range(0, dv, LANES):
        mixed = splat(_ZERO)
        for part in range(n_parts):
            offset = part * part_bytes
            mixed = fma(load_f32(sums + offset + start * 4), splat(load_float(maxima + offset)), mixed)
        mixed = mixed * splat(np.float32(1) / total)
        store_values(F32, out, start, dv, mixed)


@kernel
def attend(
    k_layout: Any,
    v_layout: Any,
    addresses: np.ndarray,
    ends: np.ndarray,
    window: int,
    q: int,
    q_strides: tuple[int, int],
    heads: tuple[int, int, int, int],
    scale: float,
    scratch: int,
    out: int,
) -> None:
    """Attention of ``len(ends)`` rows; row r sees positions below ``ends[r]``, at most the last ``window`` (0: all).

    addresses: as from ``KVCache.addresses``, one line per row; q, out, scratch: addresses, out ``[rows, n_heads, dv]``
    contiguous; q_strides: bytes between rows and between heads; heads: (n_heads, n_kv_heads, d, dv).
    """
    n_heads, n_kv_heads, d, dv = heads
    n_group = n_heads // n_kv_heads
    group, wide, wide_v = _padded_group(n_group), _padded_width(d), _padded_width(dv)
    shape = (n_kv_heads, group, d, wide, dv, wide_v)
    n_padded = n_kv_heads * group
    n_rows = len(ends)
    part_bytes = _part_floats(k_layout, v_layout, n_kv_heads, n_padded, d, dv) * 4
    query_bytes = n_padded * wide * 4
    row_scratch = query_bytes + MAX_PARTS * part_bytes
    for row in range(n_rows):
        heads_of_row = q + row * q_strides[0]
        _pad_query(k_layout, heads_of_row, q_strides[1], np.float32(scale), n_group, scratch + row * row_scratch, shape)
    for job in prange(MAX_PARTS * n_rows):
        slot, row = job // n_rows, job % n_rows
        first = addresses[row, 4]
        end = ends[row] - first
        begin = max(end - window, 0) if window > 0 else 0
        part_cells = _part_cells(end - begin)
        n_parts = (end - begin + part_cells - 1) // part_cells
        part = slot * n_parts // MAX_PARTS
        if slot == 0 or part != (slot - 1) * n_parts // MAX_PARTS:  # parts are spread evenly over the slots
            mine = begin + part * part_cells
            base = scratch + row * row_scratch
            _attend_part(
                k_layout,
                v_layout,
                (addresses[row, 0], addresses[row, 1], addresses[row, 2], addresses[row, 3]),
                mine,
                min(mine + part_cells, end),
                base,
                base + query_bytes + part * part_bytes,
                shape,
            )
    for job in prange(n_rows * n_heads):
        row, head = job // n_heads, job % n_heads
        end = ends[row] - addresses[row, 4]
        n_cells = min(end, window) if window > 0 else end
        part_cells = _part_cells(n_cells)
        n_parts = (n_cells + part_cells - 1) // part_cells
        padded = head // n_group * group + head % n_group
        parts = scratch + row * row_scratch + query_bytes
        _combine(parts, part_bytes, n_parts, padded, shape, out + job * dv * 4)
