"""The inner loops of decode attention, on tiles of four cells and one, two or four query heads.

A tile converts each K or V row once for all its query heads. Query heads lie ``wide`` * 4 bytes apart, padded with
zeros to whole vectors; scores are ``[head][64 cells]``, sums ``[head][dv, padded]``.

shape, everywhere: (K heads, padded query heads per K head, d, wide, dv, wide_v).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from elastikv.kernels.cpu.jit import inlined
from elastikv.kernels.cpu.keys import (
    add_product,
    finish_scores,
    key_step,
    load_key,
    load_query,
    widen_scales,
)
from elastikv.kernels.cpu.layouts import BLOCK, load_values, row_bytes, scale_bytes
from elastikv.kernels.cpu.vector import LANES, Vector, load_f32, load_float, prefetch_outer, store_f32
from elastikv.kernels.cpu.vector_math import fma, splat, store_sums

BLOCK_CELLS = 64
SCORE_STRIDE = BLOCK_CELLS * 4
AHEAD = 16384
"""Bytes that prefetching is ahead of reading cells: 8 and 32 KiB are about as fast, 4 KiB a fifth slower."""
ZERO = np.float32(0)


@inlined
def tile_rows(base: int, stride: int, cell: int, last: int) -> tuple[int, int, int, int]:
    """Addresses of four rows from ``cell`` on; those behind ``last`` repeat it (their weights are 0)."""
    return (
        base + min(cell, last) * stride,
        base + min(cell + 1, last) * stride,
        base + min(cell + 2, last) * stride,
        base + min(cell + 3, last) * stride,
    )


@inlined
def offset_all(addresses: Any, offset: int) -> tuple[int, int, int, int]:
    """The same place in four rows."""
    return (addresses[0] + offset, addresses[1] + offset, addresses[2] + offset, addresses[3] + offset)


@inlined
def prefetch_ahead(address: int, n_bytes: int) -> None:
    """Ask for ``n_bytes`` in a row, ``AHEAD`` behind the address.

    Call it in the order of memory, so that the processor's own prefetching joins in.
    """
    for line in range(0, n_bytes, 64):
        prefetch_outer(address + AHEAD + line)


# --- scores


@register_jitable
def score_int8_floats(n_kv_heads: int, d: int) -> int:
    """float32 values of scratch that the scores of q8_0 cells need: four cells' scales, in whole vectors."""
    return 4 * n_kv_heads * ((d + BLOCK - 1) // BLOCK) + LANES


@inlined
def _no_products() -> tuple[Vector, Vector, Vector, Vector]:
    zero = splat(ZERO)
    return (zero, zero, zero, zero)


@inlined
def _load_keys(layout: Any, rows: Any, scales: Any, start: int, width: int) -> Any:
    """The same values of four cells."""
    return (
        load_key(layout, rows[0], scales[0], start, width),
        load_key(layout, rows[1], scales[1], start, width),
        load_key(layout, rows[2], scales[2], start, width),
        load_key(layout, rows[3], scales[3], start, width),
    )


@inlined
def _add_products(layout: Any, keys: Any, q: int, start: int, sums: Any) -> tuple[Vector, Vector, Vector, Vector]:
    """Four cells' sums of products with the query head at ``q``, and those of the values from ``start`` on."""
    query = load_query(layout, q, start)
    return (
        add_product(layout, keys[0], query, sums[0]),
        add_product(layout, keys[1], query, sums[1]),
        add_product(layout, keys[2], query, sums[2]),
        add_product(layout, keys[3], query, sums[3]),
    )


@inlined
def _score_1(layout: Any, rows: Any, scales: Any, width: int, q: int, q_stride: int, out: int) -> None:
    """``out[cell] = q . row``: four cells, one query head."""
    a = _no_products()
    for start in range(0, width, key_step(layout)):
        keys = _load_keys(layout, rows, scales, start, width)
        a = _add_products(layout, keys, q, start, a)
    store_sums(out, *a)


@inlined
def _score_2(layout: Any, rows: Any, scales: Any, width: int, q: int, q_stride: int, out: int) -> None:
    """The same for two query heads."""
    a = b = _no_products()
    for start in range(0, width, key_step(layout)):
        keys = _load_keys(layout, rows, scales, start, width)
        a = _add_products(layout, keys, q, start, a)
        b = _add_products(layout, keys, q + q_stride, start, b)
    store_sums(out, *a)
    store_sums(out + SCORE_STRIDE, *b)


@inlined
def _score_4(layout: Any, rows: Any, scales: Any, width: int, q: int, q_stride: int, out: int) -> None:
    """The same for four query heads."""
    a = b = c = d = _no_products()
    for start in range(0, width, key_step(layout)):
        keys = _load_keys(layout, rows, scales, start, width)
        a = _add_products(layout, keys, q, start, a)
        b = _add_products(layout, keys, q + q_stride, start, b)
        c = _add_products(layout, keys, q + 2 * q_stride, start, c)
        d = _add_products(layout, keys, q + 3 * q_stride, start, d)
    store_sums(out, *a)
    store_sums(out + SCORE_STRIDE, *b)
    store_sums(out + 2 * SCORE_STRIDE, *c)
    store_sums(out + 3 * SCORE_STRIDE, *d)


@inlined
def score_block(
    layout: Any, keys: int, scales: int, begin: int, end: int, q: int, scores: int, scratch: int, shape: Any
) -> None:
    """Scores of cells ``begin..end`` (at most 64) with all heads."""
    n_kv_heads, group, d, wide, _, _ = shape
    head_bytes, head_scales = row_bytes(layout, d), 2 * scale_bytes(layout, d)  # widened: 4 bytes each
    q_stride = wide * 4
    for cell in range(begin, end, 4):
        rows = tile_rows(keys, n_kv_heads * head_bytes, cell, end - 1)
        widen_scales(layout, scales, cell, min(cell + 4, end), n_kv_heads, d, scratch)
        row_scales = tile_rows(scratch, n_kv_heads * head_scales, 0, end - 1 - cell)
        out = scores + (cell - begin) * 4
        for head in range(n_kv_heads):
            k = offset_all(rows, head * head_bytes)
            s = offset_all(row_scales, head * head_scales)
            prefetch_ahead(keys + (cell * n_kv_heads + head * 4) * head_bytes, 4 * head_bytes)
            first = head * group
            if group == 1:
                _score_1(layout, k, s, d, q + first * q_stride, q_stride, out + first * SCORE_STRIDE)
            elif group == 2:
                _score_2(layout, k, s, d, q + first * q_stride, q_stride, out + first * SCORE_STRIDE)
            else:
                for query in range(first, first + group, 4):
                    _score_4(layout, k, s, d, q + query * q_stride, q_stride, out + query * SCORE_STRIDE)
    for query in range(n_kv_heads * group):
        finish_scores(layout, q + query * q_stride, wide, scores + query * SCORE_STRIDE, end - begin)


# --- sums of V


@inlined
def _weights(weights: int) -> tuple[Vector, Vector, Vector, Vector]:
    """One query head's softmax weights of four cells, each in all lanes."""
    return (
        splat(load_float(weights)),
        splat(load_float(weights + 4)),
        splat(load_float(weights + 8)),
        splat(load_float(weights + 12)),
    )


@inlined
def _load_rows(layout: Any, rows: Any, start: int, width: int) -> tuple[Vector, Vector, Vector, Vector]:
    """The same sixteen values of four cells."""
    return (
        load_values(layout, rows[0], 0, start, width),
        load_values(layout, rows[1], 0, start, width),
        load_values(layout, rows[2], 0, start, width),
        load_values(layout, rows[3], 0, start, width),
    )


@inlined
def _add_weighted(sums: int, w: Any, v: Any) -> None:
    """``sums += w . v`` on one vector of a head's sums."""
    pair = fma(w[1], v[1], fma(w[0], v[0], load_f32(sums)))
    store_f32(sums, fma(w[3], v[3], fma(w[2], v[2], pair)))


@inlined
def _mix_1(layout: Any, rows: Any, width: int, weights: int, sums: int, stride: int) -> None:
    """``sums += weights[cell] * row``: four cells, one query head."""
    w = _weights(weights)
    for start in range(0, width, LANES):
        _add_weighted(sums + start * 4, w, _load_rows(layout, rows, start, width))


@inlined
def _mix_2(layout: Any, rows: Any, width: int, weights: int, sums: int, stride: int) -> None:
    """The same for two query heads."""
    w, x = _weights(weights), _weights(weights + SCORE_STRIDE)
    for start in range(0, width, LANES):
        v = _load_rows(layout, rows, start, width)
        _add_weighted(sums + start * 4, w, v)
        _add_weighted(sums + stride + start * 4, x, v)


@inlined
def _mix_4(layout: Any, rows: Any, width: int, weights: int, sums: int, stride: int) -> None:
    """The same for four query heads."""
    w, x = _weights(weights), _weights(weights + SCORE_STRIDE)
    y, z = _weights(weights + 2 * SCORE_STRIDE), _weights(weights + 3 * SCORE_STRIDE)
    for start in range(0, width, LANES):
        v = _load_rows(layout, rows, start, width)
        _add_weighted(sums + start * 4, w, v)
        _add_weighted(sums + stride + start * 4, x, v)
        _add_weighted(sums + 2 * stride + start * 4, y, v)
        _add_weighted(sums + 3 * stride + start * 4, z, v)


@inlined
def mix_floats(
    layout: Any, values: int, scales: int, begin: int, end: int, weights: int, sums: int, scratch: int, shape: Any
) -> None:
    """Add the weighted V rows of cells ``begin..end`` (at most 64) to the sums of all heads.

    For layouts without scales, which need no scratch either; see ``mix_int8`` for q8_0.
    """
    n_kv_heads, group, _, _, dv, wide_v = shape
    head_bytes, stride = row_bytes(layout, dv), wide_v * 4
    for cell in range(begin, end, 4):
        rows = tile_rows(values, n_kv_heads * head_bytes, cell, end - 1)
        w = weights + (cell - begin) * 4
        for head in range(n_kv_heads):
            v = offset_all(rows, head * head_bytes)
            prefetch_ahead(values + (cell * n_kv_heads + head * 4) * head_bytes, 4 * head_bytes)
            first = head * group
            if group == 1:
                _mix_1(layout, v, dv, w + first * SCORE_STRIDE, sums + first * stride, stride)
            elif group == 2:
                _mix_2(layout, v, dv, w + first * SCORE_STRIDE, sums + first * stride, stride)
            else:
                for query in range(first, first + group, 4):
                    _mix_4(layout, v, dv, w + query * SCORE_STRIDE, sums + query * stride, stride)
