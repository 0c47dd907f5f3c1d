"""QK of decode attention: scores of a block of cells, in tiles of four cells and one, two or four query heads.

A tile loads each K row once for all its query heads, and multiplies as the cells' layout does. Query heads lie
``wide`` * 4 bytes apart. For ``shape`` and scores see ``formats/cells``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from elastikv.kernels.cpu.formats.cells import CELLS_PREFETCH, SCORE_STRIDE
from elastikv.kernels.cpu.formats.layout import load_values
from elastikv.kernels.cpu.formats.plain import F16
from elastikv.kernels.cpu.jit import inlined
from elastikv.kernels.cpu.simd.math import splat, store_sums
from elastikv.kernels.cpu.simd.memory import store_f32
from elastikv.kernels.cpu.simd.rows import four_rows, offset_rows, prefetch_bytes
from elastikv.kernels.cpu.simd.vector import LANES, Vector

_ZERO = np.float32(0)


@inlined
def _no_products() -> tuple[Vector, Vector, Vector, Vector]:
    zero = splat(_ZERO)
    return (zero, zero, zero, zero)


@inlined
def _load_keys(layout: Any, rows: Any, scales: Any, start: int, width: int) -> Any:
    """The values from ``start`` on of four cells."""
    return (
        layout.load_key(rows[0], scales[0], start, width),
        layout.load_key(rows[1], scales[1], start, width),
        layout.load_key(rows[2], scales[2], start, width),
        layout.load_key(rows[3], scales[3], start, width),
    )


@inlined
def _add_products(layout: Any, keys: Any, q: int, start: int, sums: Any) -> tuple[Vector, Vector, Vector, Vector]:
    """Four cells' sums of products with the query head at ``q``, and those of the values from ``start`` on."""
    query = layout.load_query(q, start)
    return (
        layout.add_product(keys[0], query, sums[0]),
        layout.add_product(keys[1], query, sums[1]),
        layout.add_product(keys[2], query, sums[2]),
        layout.add_product(keys[3], query, sums[3]),
    )


@inlined
def _qk_1(layout: Any, rows: Any, scales: Any, width: int, q: int, q_stride: int, out: int) -> None:
    """``out[cell] = q . row``: four cells, one query head."""
    a = _no_products()
    for start in range(0, width, layout.key_step()):
        keys = _load_keys(layout, rows, scales, start, width)
        a = _add_products(layout, keys, q, start, a)
    store_sums(out, *a)


@inlined
def _qk_2(layout: Any, rows: Any, scales: Any, width: int, q: int, q_stride: int, out: int) -> None:
    """``out[head][cell] = q . row``: four cells, two query heads."""
    a = b = _no_products()
    for start in range(0, width, layout.key_step()):
        keys = _load_keys(layout, rows, scales, start, width)
        a = _add_products(layout, keys, q, start, a)
        b = _add_products(layout, keys, q + q_stride, start, b)
    store_sums(out, *a)
    store_sums(out + SCORE_STRIDE, *b)


@inlined
def _qk_4(layout: Any, rows: Any, scales: Any, width: int, q: int, q_stride: int, out: int) -> None:
    """``out[head][cell] = q . row``: four cells, four query heads."""
    a = b = c = d = _no_products()
    for start in range(0, width, layout.key_step()):
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
def _widen_scales(layout: Any, scales: int, begin: int, end: int, n_heads: int, d: int, out: int) -> None:
    """Write the scales of cells ``begin..end``, all heads, one after the other, in float32; nothing without scales."""
    cell_bytes = n_heads * layout.scale_bytes(d)
    source, count = scales + begin * cell_bytes, (end - begin) * cell_bytes // 2
    for start in range(0, count, LANES):
        store_f32(out + start * 4, load_values(F16, source, 0, start, count))


@inlined
def qk_block(
    layout: Any, keys: int, scales: int, begin: int, end: int, q: int, scores: int, scratch: int, shape: Any
) -> None:
    """Scores of cells ``begin..end`` (at most 64) with all query heads, not yet scaled to a softmax.

    keys, scales, q, scores, scratch: addresses, as ``formats/cells`` describes them.
    """
    n_kv_heads, group, d, wide, _, _ = shape
    head_bytes, head_scales = layout.row_bytes(d), 2 * layout.scale_bytes(d)  # as float32: 4 bytes each
    q_stride = wide * 4
    for cell in range(begin, end, 4):
        rows = four_rows(keys, n_kv_heads * head_bytes, cell, end - 1)
        _widen_scales(layout, scales, cell, min(cell + 4, end), n_kv_heads, d, scratch)
        row_scales = four_rows(scratch, n_kv_heads * head_scales, 0, end - 1 - cell)
        out = scores + (cell - begin) * 4
        for head in range(n_kv_heads):
            k = offset_rows(rows, head * head_bytes)
            s = offset_rows(row_scales, head * head_scales)
            prefetch_bytes(keys + CELLS_PREFETCH + (cell * n_kv_heads + head * 4) * head_bytes, 4 * head_bytes)
            first = head * group
            if group == 1:
                _qk_1(layout, k, s, d, q + first * q_stride, q_stride, out + first * SCORE_STRIDE)
            elif group == 2:
                _qk_2(layout, k, s, d, q + first * q_stride, q_stride, out + first * SCORE_STRIDE)
            else:
                for query in range(first, first + group, 4):
                    _qk_4(layout, k, s, d, q + query * q_stride, q_stride, out + query * SCORE_STRIDE)
    for query in range(n_kv_heads * group):
        layout.finish_scores(q + query * q_stride, wide, scores + query * SCORE_STRIDE, end - begin)
