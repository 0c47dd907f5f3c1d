"""Normalise and rotate q and k, and write k and v to their cells, in one pass over the new tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numba.extending import overload

from elastikv.kernels.cpu.jit import inlined, kernel
from elastikv.kernels.cpu.layouts import BLOCK, F32, largest, load_values, row_bytes, scale_bytes, store_values
from elastikv.kernels.cpu.norms import MIN_PARALLEL, inverse_rms
from elastikv.kernels.cpu.vector import LANES, Vector, store_half, store_i8, store_i8_part
from elastikv.kernels.cpu.vector_math import fma, round_even, splat


@inlined
def _scaled(x: int, start: int, end: int, weight: int, factor: float) -> Vector:
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


def _store_head(layout: Any, x: int, d: int, cell: int, scales: int) -> None:
    """Write one head's d values to its cell."""
    raise NotImplementedError


@overload(_store_head)
def _choose_store_head(layout: Any, x: Any, d: Any, cell: Any, scales: Any) -> Any:
    if layout.label == "q8_0":

        def quantised(layout: Any, x: Any, d: Any, cell: Any, scales: Any) -> Any:
            for start in range(0, d, BLOCK):
                _quantise_block(x + start * 4, min(d - start, BLOCK), cell + start, scales + start // BLOCK * 2)

        return quantised

    def plain(layout: Any, x: Any, d: Any, cell: Any, scales: Any) -> Any:
        for start in range(0, d, LANES):
            store_values(layout, cell, start, d, load_values(F32, x, 0, start, d))

    return plain


@inlined
def _quantise_block(x: int, count: int, cell: int, scale: int) -> None:
    """Up to 32 values as int8 ``round(x / d)`` with ``d = max|x| / 127`` as float16."""
    step = largest(x, count) / np.float32(127)
    inverse = np.float32(1) / step if step > 0 else np.float32(0)
    store_half(scale, step)
    for start in range(0, count, LANES):
        whole = round_even(load_values(F32, x, 0, start, count) * splat(inverse))
        if start + LANES <= count:
            store_i8(cell + start, whole)
        else:
            store_i8_part(cell + start, whole, count - start)


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
        k_scales = addresses[2] + place * scale_bytes(k_layout, d)
        _store_head(k_layout, key, d, addresses[0] + place * row_bytes(k_layout, d), k_scales)
        v_scales = addresses[3] + place * scale_bytes(v_layout, dv)
        _store_head(v_layout, value, dv, addresses[1] + place * row_bytes(v_layout, dv), v_scales)


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
    """tensors: addresses of q, k, v, cos, sin; strides: bytes between rows and heads of q, k, v; norms: addresses
    of the weights of q and k, or zeros; shape: (n_heads, n_kv_heads, d, dv, rotary_dim / 2).

    addresses: ``KVCache.addresses``, one line per span; span_of, positions: int64 ``[n]``.
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
