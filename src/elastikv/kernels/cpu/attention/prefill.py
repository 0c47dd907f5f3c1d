"""Prefill attention: many consecutive queries of one sequence, over chunks of its cells.

Per chunk: K and V are packed once, for all queries. Then threads take tiles of rows, a row being one query head of one
token, a K head's rows being ``[token, query head of the group]``. A few rows at a time: scores of the cells that any of
these sees, a softmax with running maximum (Milakov and Gimelshein, arXiv:1805.02867), and weighted sums of V. What the
rows hold from chunk to chunk are their sums, in ``out``, and a maximum and a total each. Scratch does not depend on
how many cells there are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import prange
from numba.extending import register_jitable

from elastikv.batch import Span
from elastikv.kernels.cpu.attention.chunks import CHUNK, LOW, PANEL_BYTES, UNITS, Products, fill, padded
from elastikv.kernels.cpu.formats import CELLS
from elastikv.kernels.cpu.formats.layout import load_values, store_values
from elastikv.kernels.cpu.formats.plain import F32
from elastikv.kernels.cpu.jit import inlined, kernel, typed
from elastikv.kernels.cpu.simd.math import fma, splat
from elastikv.kernels.cpu.simd.memory import load_f32, load_float, store_float
from elastikv.kernels.cpu.simd.rows import prefetch_bytes
from elastikv.kernels.cpu.simd.vector import LANES, Scalar
from elastikv.kernels.cpu.simd.word_tile import ROWS
from elastikv.memory.base import Cells

_TILE_ROWS = 8 * ROWS
"""Rows that a thread takes at a time."""

_STATES = 1 << 16
"""Rows of all heads that are attended at once."""

_PACKED_BYTES = 4 << 20
"""Bytes of packed chunks: as many heads are attended at once as these hold, one at least."""

_ZERO, _ONE = np.float32(0), np.float32(1)


@typed(register_jitable)
def _places(products: Any, d: int, dv: int) -> tuple[int, int, int, int]:
    """Where in a head's packed chunk its keys' units, its values and their units begin, and where it ends, in bytes."""
    units = padded(products.key_words(d)) * CHUNK * 4
    values = units + CHUNK * 4
    value_units = values + padded(dv) * CHUNK * products.weight_bytes
    return units, values, value_units, value_units + padded(dv) * 4


def _packed_bytes(products: Products, d: int, dv: int) -> int:
    """Bytes of a head's packed chunk."""
    keys = padded(products.key_words(d)) + 1
    return CHUNK * (4 * keys + products.weight_bytes * padded(dv)) + padded(dv) * 4


def _heads_at_once(products: Products, n_kv_heads: int, d: int, dv: int) -> int:
    return min(max(_PACKED_BYTES // _packed_bytes(products, d, dv), 1), n_kv_heads)


def scratch_floats(products: Products, n_kv_heads: int, d: int, dv: int) -> int:
    """float32 values of scratch that ``attend_span`` needs, for at most ``_STATES`` rows."""
    return _heads_at_once(products, n_kv_heads, d, dv) * _packed_bytes(products, d, dv) // 4 + 2 * _STATES


@inlined
def _rows_of(layout: Any, cells: tuple[int, int], n_kv_heads: int, head: int, cell: int, width: int) -> Any:
    """One head of cells from ``cell`` on, as ``Products`` take it; cells: addresses of all values and scales."""
    row_bytes, scale_bytes = layout.row_bytes(width), layout.scale_bytes(width)
    place = cell * n_kv_heads + head
    return (
        cells[0] + place * row_bytes,
        cells[1] + place * scale_bytes,
        n_kv_heads * row_bytes,
        n_kv_heads * scale_bytes,
    )


@kernel
def _pack_keys(
    products: Any, layout: Any, cells: tuple[int, int], n_kv_heads: int, heads: Any, chunk: Any, dims: Any, packed: int
) -> None:
    """K of a chunk. heads, chunk: (first, number) of heads and of cells."""
    first, n_heads = heads
    d, dv = dims
    units, _, _, head_bytes = _places(products, d, dv)
    n_panels, panel_bytes = (chunk[1] + LANES - 1) // LANES, padded(products.key_words(d)) * PANEL_BYTES
    for job in prange(n_heads * n_panels):
        head, cell = job % n_heads, job // n_heads * LANES  # heads of a cell lie next to each other
        rows = _rows_of(layout, cells, n_kv_heads, first + head, chunk[0] + cell, d)
        place = packed + head * head_bytes
        count = min(chunk[1] - cell, LANES)
        for index in range(count):  # the next job's
            prefetch_bytes(rows[0] + index * rows[2] + layout.row_bytes(d), layout.row_bytes(d))
        products.pack_keys(layout, rows, count, d, place + cell // LANES * panel_bytes, place + units + cell * 4)


@kernel
def _pack_values(
    products: Any, layout: Any, cells: tuple[int, int], n_kv_heads: int, heads: Any, chunk: Any, dims: Any, packed: int
) -> None:
    """V of a chunk. heads, chunk: (first, number) of heads and of cells."""
    first, n_heads = heads
    d, dv = dims
    _, values, units, head_bytes = _places(products, d, dv)
    n_panels, panel_bytes = padded(dv) // LANES, CHUNK * LANES * products.weight_bytes
    for job in prange(n_heads * n_panels):
        head, panel = job // n_panels, job % n_panels
        rows = _rows_of(layout, cells, n_kv_heads, first + head, chunk[0], dv)
        place = packed + head * head_bytes
        out, unit = place + values + panel * panel_bytes, place + units + panel * LANES * 4
        products.pack_values(layout, rows, chunk[1], panel * LANES, dv, out, unit)


# Of tensors of rows, kernels take (address, bytes between tokens, bytes between heads); of rows, (first, number, query
# heads of the K head); of a chunk, (position of its first cell, cells, position of the first row's query, window or 0).


@inlined
def _row_of(tensor: Any, row: int, n_group: int) -> int:
    """The address of a row."""
    address: int = tensor[0] + row // n_group * tensor[1] + row % n_group * tensor[2]
    return address


@inlined
def _seen(row: int, n_group: int, chunk: Any) -> tuple[int, int]:
    """The cells ``begin .. end`` of a chunk that a row sees; none if end is not above begin."""
    p0, n, position, window = chunk
    end = position + row // n_group + 1 - p0
    return max(end - window, 0) if window > 0 else 0, min(end, n)


@inlined
def _write_queries(products: Any, q: Any, out: Any, rows: Any, dims: Any, scale: Scalar, buffers: Any) -> None:
    """Queries as the products take them; fetches the next ones, and what these have in out."""
    first, count, n_group = rows
    d, dv = dims
    queries, _, _, _, _, factors, _ = buffers
    for index in range(count):
        row = first + index
        unit = products.write_query(_row_of(q, row, n_group), d, queries + index * padded(d) * 4)
        store_float(factors + index * 4, unit * scale)
        prefetch_bytes(_row_of(q, row + ROWS, n_group), d * 4)
        prefetch_bytes(_row_of(out, row, n_group), dv * 4)


@inlined
def _softmax_rows(products: Any, rows: Any, chunk: Any, cells: tuple[int, int], states: Any, buffers: Any) -> None:
    """Scores to weights; cells: those that any of the rows sees."""
    first, count, n_group = rows
    maxima, totals, _ = states
    _, scores, weights, units, _, factors, shrinks = buffers
    low, high = cells[0] // LANES * LANES, padded(cells[1])
    for index in range(count):
        begin, end = _seen(first + index, n_group, chunk)
        row, row_weights = scores + index * CHUNK * 4, weights + index * CHUNK * products.weight_bytes
        row_units, maximum, total = (
            units + index * UNITS * 4,
            maxima + (first + index) * 4,
            totals + (first + index) * 4,
        )
        if end > begin:
            fill(row, low, begin, LOW)
            fill(row, end, high, LOW)
            factor, before = load_float(factors + index * 4), load_float(maximum)
            top, shrink, more = products.softmax(row, row_weights, row_units, (low, high), factor, before)
            store_float(maximum, top)
            store_float(total, load_float(total) * shrink + more)
            store_float(shrinks + index * 4, shrink)
        else:
            fill(row_weights + low * products.weight_bytes, 0, (high - low) * products.weight_bytes // 4, _ZERO)
            fill(row_units, 0, UNITS, _ZERO)
            store_float(shrinks + index * 4, _ONE)


@inlined
def _finish_row(sums: int, units: int, dv: int, shrink: Scalar, is_first: bool, factor: Scalar, out: int) -> None:
    """``out = (out * shrink + sums * units) * factor``; is_first: out holds nothing yet."""
    for start in range(0, dv, LANES):
        value = load_f32(sums + start * 4) * load_f32(units + start * 4)
        if not is_first:
            value = fma(load_values(F32, out, 0, start, dv), splat(shrink), value)
        store_values(F32, out, start, dv, value * splat(factor))


@inlined
def _attend_rows(
    products: Any, packed: int, dims: Any, q: Any, out: Any, rows: Any, chunk: Any, scale: Scalar, states: Any,
    buffers: Any,
) -> None:  # fmt: skip
    """At most ROWS rows of a K head with a chunk of cells.

    states: addresses of all the head's rows' maxima and totals, and whether there were no chunks before; buffers:
    addresses of queries, scores, weights, units, sums, factors of scores, and what earlier sums are multiplied with.
    """
    d, dv = dims
    first, count, n_group = rows
    maxima, totals, is_first = states
    queries, scores, weights, units, sums, _, shrinks = buffers
    key_units, values, value_units, _ = _places(products, d, dv)
    begin, _ = _seen(first, n_group, chunk)
    _, end = _seen(first + count - 1, n_group, chunk)
    if is_first:
        fill(maxima, first, first + count, LOW)
        fill(totals, first, first + count, _ZERO)
    if end > begin:
        _write_queries(products, q, out, rows, dims, scale, buffers)
        panels = (begin // LANES, (end + LANES - 1) // LANES)
        products.scores(queries, packed, packed + key_units, d, panels, scores)
        _softmax_rows(products, rows, chunk, (begin, end), states, buffers)
        products.sum_values(weights, units, packed + values, (begin, end), dv, sums)
    elif is_first:
        fill(sums, 0, ROWS * padded(dv), _ZERO)
    else:
        return
    for index in range(count):
        row = first + index
        own = chunk[2] + row // n_group - chunk[0]  # the last cell that it sees
        factor = _ONE / load_float(totals + row * 4) if 0 <= own < chunk[1] else _ONE
        place, shrink = sums + index * padded(dv) * 4, load_float(shrinks + index * 4)
        _finish_row(place, packed + value_units, dv, shrink, is_first, factor, _row_of(out, row, n_group))


@kernel
def _attend(
    products: Any, packed: int, dims: Any, q: Any, out: Any, shape: Any, chunk: Any, scale: float, states: int,
    is_first: bool,
) -> None:  # fmt: skip
    """All rows with a packed chunk, the first or another.

    shape: (tokens, K heads, query heads of each); scale: what scores are multiplied with; states: address of float32
    ``[2, K heads, rows]``: maxima of scores, and totals of weights.
    """
    n_tokens, n_heads, n_group = shape
    d, dv = dims
    n_rows, head_bytes = n_tokens * n_group, _places(products, d, dv)[3]
    n_tiles = (n_rows + _TILE_ROWS - 1) // _TILE_ROWS
    for job in prange(n_heads * n_tiles):
        head, index = job // n_tiles, job % n_tiles
        tile = index // 2 if index % 2 == 0 else n_tiles - 1 - index // 2  # late rows see more: each thread takes both
        queries, sums = np.zeros((ROWS, padded(d)), dtype=np.float32), np.zeros((ROWS, padded(dv)), dtype=np.float32)
        scores = np.zeros((2, ROWS, CHUNK), dtype=np.float32)
        units, numbers = np.zeros((ROWS, UNITS), dtype=np.float32), np.zeros((2, ROWS), dtype=np.float32)
        maxima = states + head * n_rows * 4
        totals = maxima + n_heads * n_rows * 4
        # Addresses are taken inside the loop: an array is freed once nothing but its address is used.
        for first in range(tile * _TILE_ROWS, min((tile + 1) * _TILE_ROWS, n_rows), ROWS):
            buffers = (
                queries.ctypes.data,
                scores.ctypes.data,
                scores.ctypes.data + ROWS * CHUNK * 4,
                units.ctypes.data,
                sums.ctypes.data,
                numbers.ctypes.data,
                numbers.ctypes.data + ROWS * 4,
            )
            _attend_rows(
                products,
                packed + head * head_bytes,
                dims,
                (q[0] + head * n_group * q[2], q[1], q[2]),
                (out[0] + head * n_group * out[2], out[1], out[2]),
                (first, min(ROWS, n_rows - first), n_group),
                chunk,
                np.float32(scale),
                (maxima, totals, is_first),
                buffers,
            )


def attend_span(
    products: Products,
    q: torch.Tensor,
    cells: Cells,
    span: Span,
    window: int | None,
    scale: float,
    scratch: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """q ``[span.n_tokens, n_heads, d]`` (strided allowed) to out ``[span.n_tokens, n_heads, dv]``."""
    n_tokens, n_heads, d = q.shape
    n_kv_heads, dv = cells.v.n_heads, cells.v.dim
    n_group = n_heads // n_kv_heads
    at_once = _heads_at_once(products, n_kv_heads, d, dv)
    step = max(_STATES // (at_once * n_group), 1)
    for head in range(0, n_kv_heads, at_once):
        stop = min(head + at_once, n_kv_heads)
        ours = slice(head * n_group, stop * n_group)
        for start in range(0, n_tokens, step):
            rows = slice(start, min(start + step, n_tokens))
            _attend_heads(
                products, q[rows, ours], cells, (head, stop - head), span.pos + start, window, scale, scratch,
                out[rows, ours],
            )  # fmt: skip


def _attend_heads(
    products: Products,
    q: torch.Tensor,
    cells: Cells,
    heads: tuple[int, int],
    position: int,
    window: int | None,
    scale: float,
    scratch: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Consecutive queries, the first at ``position``, of some K heads: the first, and how many."""
    n_tokens, n_heads, d = q.shape
    n_kv_heads, dv = cells.v.n_heads, cells.v.dim
    dims, end = (d, dv), position + n_tokens
    states = scratch.data_ptr()
    packed = states + 2 * _STATES * 4
    begin = cells.first if window is None else max(cells.first, position - window + 1)
    for p0 in range(begin, end, CHUNK):
        n = min(CHUNK, end - p0)
        chunk = (p0 - cells.first, n)
        k_layout, v_layout = (CELLS[part.format.name] for part in (cells.k, cells.v))
        _pack_keys(products, k_layout, cells.k.addresses(), n_kv_heads, heads, chunk, dims, packed)
        _pack_values(products, v_layout, cells.v.addresses(), n_kv_heads, heads, chunk, dims, packed)
        _attend(
            products,
            packed,
            dims,
            (q.data_ptr(), q.stride(0) * 4, q.stride(1) * 4),
            (out.data_ptr(), out.stride(0) * 4, out.stride(1) * 4),
            (n_tokens, heads[1], n_heads // heads[1]),
            (p0, n, position, window or 0),
            scale / math.log(2),
            states,
            p0 == begin,
        )
