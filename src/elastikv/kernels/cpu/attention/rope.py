"""Normalise and rotate q and k, and write k and v to their cells, in one pass over the new tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from elastikv.kernels.cpu.formats.layout import load_values, store_values
from elastikv.kernels.cpu.formats.plain import F32
from elastikv.kernels.cpu.jit import inlined, kernel
from elastikv.kernels.cpu.norms import MIN_PARALLEL, inverse_rms
from elastikv.kernels.cpu.simd.math import fma, splat
from elastikv.kernels.cpu.simd.vector import LANES, Scalar, Vector


@inlined
def _scaled(x: int, start: int, end: int, weight: int, factor: Scalar) -> Vector:
    """Values ``start..end`` of a head, times factor and weight (0: none)."""
    value = load_values(F32, x, 0, start, end)
    if weight == 0:
        return value
    return value * splat(factor) * load_values(F32, weight, 0, start, end)


@inlined
def _rotate_head(x: int, d: int, cos: int, sin: int, half: int, weight: int, eps: float) -> None:
    """Norm (weight 0: none), then rotation of each of the first ``half`` values with the one ``half`` behind it."""
    factor = inverse_rms(x, d, eps) if weight != 0 else np.float32(1)
    behind = half * 4
    second_weight = weight + behind if weight != 0 else 0
    for start in range(0, half, LANES):
        first = _scaled(x, start, half, weight, factor)
        second = _scaled(x + behind, start, half, second_weight, factor)
        c, s = load_values(F32, cos, 0, start, half), load_values(F32, sin, 0, start, half)
        store_values(F32, x, start, half, first * c - second * s)
        store_values(F32, x + behind, start, half, fma(first, s, second * c))
    if weight != 0:
        rest = 2 * half * 4
        for start in range(0, d - 2 * half, LANES):
            value = _scaled(x + rest, start, d - 2 * half, weight + rest, factor)
            store_values(F32, x + rest, start, d - 2 * half, value)


@inlined
def _finish_row(
    row: int,
    k_layout: Any,
    v_layout: Any,
    tensors: Any,
    strides: Any,
    norms: Any,
    eps: float,
    shape: Any,
    cell: int,
    addresses: Any,
) -> None:
    """One token: q and k in place, then k and v to row ``cell`` of its stream."""
    n_heads, n_kv_heads, d, dv, half = shape
    q, k, v = tensors[0] + row * strides[0], tensors[1] + row * strides[2], tensors[2] + row * strides[4]
    cos, sin = tensors[3] + row * half * 4, tensors[4] + row * half * 4
    for head in range(n_heads):
        _rotate_head(q + head * strides[1], d, cos, sin, half, norms[0], eps)
    for head in range(n_kv_heads):
        key, value, place = k + head * strides[3], v + head * strides[5], cell * n_kv_heads + head
        _rotate_head(key, d, cos, sin, half, norms[1], eps)
        k_scales = addresses[2] + place * k_layout.scale_bytes(d)
        k_layout.store_head(key, d, addresses[0] + place * k_layout.row_bytes(d), k_scales)
        v_scales = addresses[3] + place * v_layout.scale_bytes(dv)
        v_layout.store_head(value, dv, addresses[1] + place * v_layout.row_bytes(dv), v_scales)


@kernel
def rope_store(
    k_layout: Any,
    v_layout: Any,
    tensors: tuple[int, int, int, int, int],
    strides: tuple[int, int, int, int, int, int],
    norms: tuple[int, int],
    eps: float,
    shape: tuple[int, int, int, int, int],
    addresses: np.ndarray,
    span_of: np.ndarray,
    positions: np.ndarray,
) -> None:
    """See ``Kernels.rope_store``.

    tensors: addresses of q, k, v, cos, sin; strides: bytes between rows and heads of q, k, v; norms: addresses of the
    weights of q and k, or zeros; shape: (n_heads, n_kv_heads, d, dv, rotary_dim / 2); addresses:
    ``KVCache.addresses``, one line per span; span_of, positions: int64 ``[n]``.
    """
    n = len(positions)
    if n * (shape[0] + 2 * shape[1]) * shape[2] < MIN_PARALLEL:
        for row in range(n):
            base = addresses[span_of[row]]
            cell = positions[row] - base[4]
            _finish_row(row, k_layout, v_layout, tensors, strides, norms, eps, shape, cell, base)
    else:
        for row in prange(n):
            base = addresses[span_of[row]]
            cell = positions[row] - base[4]
            _finish_row(row, k_layout, v_layout, tensors, strides, norms, eps, shape, cell, base)
