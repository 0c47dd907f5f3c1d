"""The two inner loops of decode attention, on tiles of four cells and one, two or four query heads.

A tile converts each K or V row once for all its query heads. Query heads lie ``q_stride`` bytes
apart, padded with zeros to whole vectors; scores are ``[head][64 cells]``, sums ``[head][dv, padded]``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from elastikv.kernels.cpu.jit import inlined
from elastikv.kernels.cpu.layouts import load_values
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


@inlined
def score_1(layout: Any, rows: Any, scales: Any, width: int, q: int, q_stride: int, out: int) -> None:
    """``out[cell] = q . row``: four cells, one query head."""
    a0 = a1 = a2 = a3 = splat(ZERO)
    for start in range(0, width, LANES):
        x = load_f32(q + start * 4)
        a0 = fma(load_values(layout, rows[0], scales[0], start, width), x, a0)
        a1 = fma(load_values(layout, rows[1], scales[1], start, width), x, a1)
        a2 = fma(load_values(layout, rows[2], scales[2], start, width), x, a2)
        a3 = fma(load_values(layout, rows[3], scales[3], start, width), x, a3)
    store_sums(out, a0, a1, a2, a3)


@inlined
def score_2(layout: Any, rows: Any, scales: Any, width: int, q: int, q_stride: int, out: int) -> None:
    """The same for two query heads."""
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = splat(ZERO)
    for start in range(0, width, LANES):
        k0 = load_values(layout, rows[0], scales[0], start, width)
        k1 = load_values(layout, rows[1], scales[1], start, width)
        k2 = load_values(layout, rows[2], scales[2], start, width)
        k3 = load_values(layout, rows[3], scales[3], start, width)
        x = load_f32(q + start * 4)
        a0, a1, a2, a3 = fma(k0, x, a0), fma(k1, x, a1), fma(k2, x, a2), fma(k3, x, a3)
        y = load_f32(q + q_stride + start * 4)
        b0, b1, b2, b3 = fma(k0, y, b0), fma(k1, y, b1), fma(k2, y, b2), fma(k3, y, b3)
    store_sums(out, a0, a1, a2, a3)
    store_sums(out + SCORE_STRIDE, b0, b1, b2, b3)


@inlined
def score_4(layout: Any, rows: Any, scales: Any, width: int, q: int, q_stride: int, out: int) -> None:
    """The same for four query heads."""
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = splat(ZERO)
    c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = splat(ZERO)
    for start in range(0, width, LANES):
        k0 = load_values(layout, rows[0], scales[0], start, width)
        k1 = load_values(layout, rows[1], scales[1], start, width)
        k2 = load_values(layout, rows[2], scales[2], start, width)
        k3 = load_values(layout, rows[3], scales[3], start, width)
        x = load_f32(q + start * 4)
        a0, a1, a2, a3 = fma(k0, x, a0), fma(k1, x, a1), fma(k2, x, a2), fma(k3, x, a3)
        x = load_f32(q + q_stride + start * 4)
        b0, b1, b2, b3 = fma(k0, x, b0), fma(k1, x, b1), fma(k2, x, b2), fma(k3, x, b3)
        x = load_f32(q + 2 * q_stride + start * 4)
        c0, c1, c2, c3 = fma(k0, x, c0), fma(k1, x, c1), fma(k2, x, c2), fma(k3, x, c3)
        x = load_f32(q + 3 * q_stride + start * 4)
        d0, d1, d2, d3 = fma(k0, x, d0), fma(k1, x, d1), fma(k2, x, d2), fma(k3, x, d3)
    store_sums(out, a0, a1, a2, a3)
    store_sums(out + SCORE_STRIDE, b0, b1, b2, b3)
    store_sums(out + 2 * SCORE_STRIDE, c0, c1, c2, c3)
    store_sums(out + 3 * SCORE_STRIDE, d0, d1, d2, d3)


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
def _add_weighted(sums: int, w: Any, v0: Vector, v1: Vector, v2: Vector, v3: Vector) -> None:
    """``sums += w . v`` on one vector of a head's sums."""
    pair = fma(w[1], v1, fma(w[0], v0, load_f32(sums)))
    store_f32(sums, fma(w[3], v3, fma(w[2], v2, pair)))


@inlined
def mix_1(layout: Any, rows: Any, scales: Any, width: int, weights: int, sums: int, stride: int) -> None:
    """``sums += weights[cell] * row``: four cells, one query head."""
    w = _weights(weights)
    for start in range(0, width, LANES):
        v0 = load_values(layout, rows[0], scales[0], start, width)
        v1 = load_values(layout, rows[1], scales[1], start, width)
        v2 = load_values(layout, rows[2], scales[2], start, width)
        v3 = load_values(layout, rows[3], scales[3], start, width)
        _add_weighted(sums + start * 4, w, v0, v1, v2, v3)


@inlined
def mix_2(layout: Any, rows: Any, scales: Any, width: int, weights: int, sums: int, stride: int) -> None:
    """The same for two query heads."""
    w, x = _weights(weights), _weights(weights + SCORE_STRIDE)
    for start in range(0, width, LANES):
        v0 = load_values(layout, rows[0], scales[0], start, width)
        v1 = load_values(layout, rows[1], scales[1], start, width)
        v2 = load_values(layout, rows[2], scales[2], start, width)
        v3 = load_values(layout, rows[3], scales[3], start, width)
        _add_weighted(sums + start * 4, w, v0, v1, v2, v3)
        _add_weighted(sums + stride + start * 4, x, v0, v1, v2, v3)


@inlined
def mix_4(layout: Any, rows: Any, scales: Any, width: int, weights: int, sums: int, stride: int) -> None:
    """The same for four query heads."""
    w, x = _weights(weights), _weights(weights + SCORE_STRIDE)
    y, z = _weights(weights + 2 * SCORE_STRIDE), _weights(weights + 3 * SCORE_STRIDE)
    for start in range(0, width, LANES):
        v0 = load_values(layout, rows[0], scales[0], start, width)
        v1 = load_values(layout, rows[1], scales[1], start, width)
        v2 = load_values(layout, rows[2], scales[2], start, width)
        v3 = load_values(layout, rows[3], scales[3], start, width)
        _add_weighted(sums + start * 4, w, v0, v1, v2, v3)
        _add_weighted(sums + stride + start * 4, x, v0, v1, v2, v3)
        _add_weighted(sums + 2 * stride + start * 4, y, v0, v1, v2, v3)
        _add_weighted(sums + 3 * stride + start * 4, z, v0, v1, v2, v3)
