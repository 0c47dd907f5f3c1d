"""Prefill attention: many consecutive queries of one sequence, over blocks of cells, by matrix products.

One K head at a time; its query heads' rows are ``[token, query head of the group]``. Per block of cells: K
and V dequantised to float32, scores by one product, a softmax with running maximum (Milakov and Gimelshein,
arXiv:1805.02867) in place, and the second product onto the sums. Scratch does not depend on how many cells there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numba import prange

from elastikv.batch import Span
from elastikv.kernels.cpu.formats import CELLS
from elastikv.kernels.cpu.formats.layout import load_values, store_values
from elastikv.kernels.cpu.formats.plain import F32
from elastikv.kernels.cpu.jit import inlined, kernel
from elastikv.kernels.cpu.simd.math import exp, max_lanes, maximum, splat, sum_lanes
from elastikv.kernels.cpu.simd.memory import load_float, store_float
from elastikv.kernels.cpu.simd.vector import LANES, Scalar
from elastikv.memory.base import Cells
from elastikv.memory.formats import CellTensor

_CHUNK_CELLS = 512
_CHUNK_ROWS = 1024
_LOW = np.float32(-1e30)
_ZERO = np.float32(0)


def scratch_floats(d: int, dv: int) -> int:
    """float32 values of scratch that ``attend_span`` needs for heads of these widths."""
    return _CHUNK_CELLS * (d + dv + _CHUNK_ROWS) + _CHUNK_ROWS * (d + dv + 2)


@kernel
def _dequantise_head(
    layout: Any, cells: int, scales: int, n_heads: int, head: int, width: int, n: int, out: int
) -> None:
    """One head of n consecutive cells as float32 ``[n, width]``; cells, scales: addresses of the first."""
    for cell in prange(n):
        place = cell * n_heads + head
        row, row_scales = cells + place * layout.row_bytes(width), scales + place * layout.scale_bytes(width)
        for start in range(0, width, LANES):
            values = load_values(layout, row, row_scales, start, width)
            store_values(F32, out + cell * width * 4, start, width, values)


@inlined
def _fill(row: int, begin: int, end: int, value: Scalar) -> None:
    for start in range(begin, end, LANES):
        store_values(F32, row, start, end, splat(value))


@inlined
def _exp_row(row: int, n: int, top: Scalar) -> Scalar:
    """exp(score - top) in place; returns their sum."""
    base, total, last = splat(top), splat(_ZERO), n // LANES * LANES
    for start in range(0, last, LANES):
        weights = exp(load_values(F32, row, 0, start, n) - base)
        store_values(F32, row, start, n, weights)
        total = total + weights
    rest = _ZERO
    for index in range(last, n):
        weight = np.float32(np.exp(load_float(row + index * 4) - top))
        store_float(row + index * 4, weight)
        rest += weight
    return sum_lanes(total) + rest


@inlined
def _max_row(row: int, n: int) -> Scalar:
    top, last = splat(_LOW), n // LANES * LANES
    for start in range(0, last, LANES):
        top = maximum(top, load_values(F32, row, 0, start, n))
    highest = max_lanes(top)
    for index in range(last, n):
        highest = max(highest, load_float(row + index * 4))
    return highest


@kernel
def _softmax(
    scores: int, n_rows: int, n: int, n_group: int, position: int, p0: int, window: int, sums: int, dv: int, state: int
) -> None:
    """Scores ``[n_rows, n]`` of positions ``p0 ..`` to weights, in place; sums ``[n_rows, dv]`` are rescaled.

    Row r is a query at ``position + r // n_group``. state: maxima ``[n_rows]``, then totals ``[n_rows]``.
    """
    for index in prange(n_rows):
        row, maxima, totals = scores + index * n * 4, state + index * 4, state + (n_rows + index) * 4
        query = position + index // n_group
        end = min(query + 1 - p0, n)
        begin = min(max(query + 1 - window - p0, 0), n) if window > 0 else 0
        if end <= begin:
            _fill(row, 0, n, _ZERO)
            continue
        _fill(row, 0, begin, _LOW)
        _fill(row, end, n, _LOW)
        before = load_float(maxima)
        top = max(before, _max_row(row, n))
        total = _exp_row(row, n, top)
        if top > before:
            shrink = np.float32(np.exp(before - top))
            store_float(maxima, top)
            store_float(totals, load_float(totals) * shrink + total)
            for start in range(0, dv, LANES):
                target = sums + index * dv * 4
                store_values(F32, target, start, dv, load_values(F32, target, 0, start, dv) * splat(shrink))
        else:
            store_float(totals, load_float(totals) + total)


@dataclass(frozen=True, slots=True)
class _Views:
    """The pieces of one call's scratch."""

    keys: torch.Tensor
    values: torch.Tensor
    scores: torch.Tensor
    queries: torch.Tensor
    sums: torch.Tensor
    state: torch.Tensor


def _split(scratch: torch.Tensor, d: int, dv: int) -> _Views:
    sizes = (d, dv, _CHUNK_ROWS)
    keys, values, scores, rest = scratch[: scratch_floats(d, dv)].split(
        [*(_CHUNK_CELLS * size for size in sizes), _CHUNK_ROWS * (d + dv + 2)]
    )
    queries, sums, state = rest.split([_CHUNK_ROWS * d, _CHUNK_ROWS * dv, 2 * _CHUNK_ROWS])
    return _Views(keys, values, scores, queries, sums, state)


def attend_span(
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
    views = _split(scratch, d, dv)
    step = max(_CHUNK_ROWS // n_group, 1)
    for head in range(n_kv_heads):
        heads = slice(head * n_group, (head + 1) * n_group)
        for start in range(0, n_tokens, step):
            stop = min(start + step, n_tokens)
            piece = Span(span.seq_id, start, stop, span.pos + start)
            _attend_piece(q[start:stop, heads], cells, head, piece, window, scale, views, out[start:stop, heads])


def _attend_piece(
    q: torch.Tensor,
    cells: Cells,
    head: int,
    piece: Span,
    window: int | None,
    scale: float,
    views: _Views,
    out: torch.Tensor,
) -> None:
    """Consecutive queries of the heads that share K head ``head``."""
    n_tokens, n_group, d = q.shape
    dv = out.shape[2]
    n_rows = n_tokens * n_group
    queries = views.queries[: n_rows * d].view(n_rows, d)
    torch.mul(q, scale, out=queries.view(q.shape))
    sums = views.sums[: n_rows * dv].view(n_rows, dv).zero_()
    state = views.state[: 2 * n_rows]
    state[:n_rows], state[n_rows:] = float(_LOW), 0
    begin = cells.first if window is None else max(cells.first, piece.pos - window + 1)
    for p0 in range(begin, piece.end, _CHUNK_CELLS):
        n = min(_CHUNK_CELLS, piece.end - p0)
        keys = _dequantise(cells.k, p0 - cells.first, n, head, views.keys)
        values = _dequantise(cells.v, p0 - cells.first, n, head, views.values)
        scores = torch.mm(queries, keys.t(), out=views.scores[: n_rows * n].view(n_rows, n))
        _softmax(
            scores.data_ptr(), n_rows, n, n_group, piece.pos, p0, window or 0, sums.data_ptr(), dv, state.data_ptr()
        )
        sums.addmm_(scores, values)
    torch.div(sums.view(out.shape), state[n_rows:].view(n_tokens, n_group, 1), out=out)


def _dequantise(cells: CellTensor, first: int, n: int, head: int, scratch: torch.Tensor) -> torch.Tensor:
    """One head of rows ``first .. first + n`` as float32 ``[n, dim]`` in scratch."""
    out = scratch[: n * cells.dim].view(n, cells.dim)
    layout, n_rows, (address, scales) = CELLS[cells.format.name], first * cells.n_heads, cells.addresses()
    address += n_rows * layout.row_bytes(cells.dim)
    scales += n_rows * layout.scale_bytes(cells.dim)
    _dequantise_head(layout, address, scales, cells.n_heads, head, cells.dim, n, out.data_ptr())
    return out
