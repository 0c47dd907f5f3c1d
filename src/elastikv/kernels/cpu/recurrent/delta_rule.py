"""The gated delta rule, and the gates that it takes.

Jobs are table lines, one per sequence: addresses of the state to read and to write (which may be the
same), and the rows of the sequence's tokens, ``[start, stop)``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from elastikv.kernels.cpu.formats.layout import load_values, store_values
from elastikv.kernels.cpu.formats.plain import F32
from elastikv.kernels.cpu.jit import inlined, kernel
from elastikv.kernels.cpu.simd.math import fma, splat, sum_lanes
from elastikv.kernels.cpu.simd.memory import load_float, store_float
from elastikv.kernels.cpu.simd.vector import LANES, Scalar, Vector

_ZERO = np.float32(0)
_NORM_EPS = 1e-6
_MIN_PARALLEL_GATES = 1 << 10
_LINEAR_FROM = 20
"""From here on softplus(x) is x."""


@inlined
def _gates_row(a: int, b: int, rate: int, bias: int, n_heads: int, decay: int, beta: int) -> None:
    for offset in range(0, n_heads * 4, 4):
        raised = load_float(a + offset) + load_float(bias + offset)
        soft = np.float32(math.log1p(math.exp(raised))) if raised <= _LINEAR_FROM else raised
        store_float(decay + offset, soft * load_float(rate + offset))
        store_float(beta + offset, np.float32(1 / (1 + math.exp(-load_float(b + offset)))))


@kernel
def delta_gates(a: int, b: int, stride: int, rate: int, bias: int, n: int, n_heads: int, decay: int, beta: int) -> None:
    """See ``Kernels.delta_gates``. Addresses; rows of a and b ``stride`` bytes apart, the others contiguous."""
    if n * n_heads < _MIN_PARALLEL_GATES:
        for row in range(n):
            offset = row * n_heads * 4
            _gates_row(a + row * stride, b + row * stride, rate, bias, n_heads, decay + offset, beta + offset)
    else:
        for row in prange(n):
            offset = row * n_heads * 4
            _gates_row(a + row * stride, b + row * stride, rate, bias, n_heads, decay + offset, beta + offset)


@inlined
def _squared_norm(x: int, d: int) -> Scalar:
    squares = splat(_ZERO)
    for start in range(0, d, LANES):
        value = load_values(F32, x, 0, start, d)
        squares = fma(value, value, squares)
    return sum_lanes(squares)


@inlined
def _read_state(state: int, stride: int, k: int, dk: int, count: int) -> Vector:
    """``k S`` on up to 16 columns; four sums at once, for the latency."""
    a = b = c = d = splat(_ZERO)
    whole = dk // 4 * 4
    for i in range(0, whole, 4):
        row = state + i * stride
        a = fma(load_values(F32, row, 0, 0, count), splat(load_float(k + i * 4)), a)
        b = fma(load_values(F32, row + stride, 0, 0, count), splat(load_float(k + i * 4 + 4)), b)
        c = fma(load_values(F32, row + 2 * stride, 0, 0, count), splat(load_float(k + i * 4 + 8)), c)
        d = fma(load_values(F32, row + 3 * stride, 0, 0, count), splat(load_float(k + i * 4 + 12)), d)
    for i in range(whole, dk):
        a = fma(load_values(F32, state + i * stride, 0, 0, count), splat(load_float(k + i * 4)), a)
    return (a + b) + (c + d)


@inlined
def _update_row(source: int, target: int, keep: Vector, change: Vector, k: int, count: int) -> Vector:
    """One row of ``keep S + k change``, written and returned."""
    row = fma(splat(load_float(k)), change, load_values(F32, source, 0, 0, count) * keep)
    store_values(F32, target, 0, count, row)
    return row


@inlined
def _update_state(
    source: int,
    source_stride: int,
    target: int,
    target_stride: int,
    keep: Vector,
    change: Vector,
    k: int,
    q: int,
    dk: int,
    count: int,
) -> Vector:
    """``S <- keep S + k change`` from source to target (may be the same); returns ``q S``."""
    a = b = splat(_ZERO)
    whole = dk // 2 * 2
    for i in range(0, whole, 2):
        s, t = source + i * source_stride, target + i * target_stride
        first = _update_row(s, t, keep, change, k + i * 4, count)
        a = fma(first, splat(load_float(q + i * 4)), a)
        second = _update_row(s + source_stride, t + target_stride, keep, change, k + i * 4 + 4, count)
        b = fma(second, splat(load_float(q + i * 4 + 4)), b)
    for i in range(whole, dk):
        row = _update_row(source + i * source_stride, target + i * target_stride, keep, change, k + i * 4, count)
        a = fma(row, splat(load_float(q + i * 4)), a)
    return a + b


@inlined
def _delta_columns(
    tensors: Any, strides: Any, shape: Any, span: Any, k_head: int, v_head: int, column: int, scratch: int
) -> None:
    """All of a sequence's new tokens in up to 16 columns of one head's state.

    The columns are read from the old state for the first token, kept in scratch (``[dk, 16]``, in the
    nearest cache) in between, and written to the new state with the last token.
    """
    q, k, v, decay, beta, out = tensors
    n_v_heads, dk, dv = shape
    source, target, begin, end = span
    count = min(dv - column, LANES)
    state_offset = (v_head * dk * dv + column) * 4
    for token in range(begin, end):
        q_row = q + token * strides[0] + k_head * strides[1]
        k_row = k + token * strides[2] + k_head * strides[3]
        q_factor = np.float32(1 / math.sqrt((_squared_norm(q_row, dk) + _NORM_EPS) * dk))
        k_factor = np.float32(1 / math.sqrt(_squared_norm(k_row, dk) + _NORM_EPS))
        keep = np.float32(math.exp(load_float(decay + token * strides[6] + v_head * 4)))
        rate = load_float(beta + token * strides[7] + v_head * 4)
        before, before_stride = (source + state_offset, dv * 4) if token == begin else (scratch, LANES * 4)
        after, after_stride = (target + state_offset, dv * 4) if token == end - 1 else (scratch, LANES * 4)
        value = load_values(F32, v + token * strides[4] + v_head * strides[5] + column * 4, 0, 0, count)
        answer = _read_state(before, before_stride, k_row, dk, count)
        change = (value - answer * splat(keep * k_factor)) * splat(rate * k_factor)
        mixed = _update_state(before, before_stride, after, after_stride, splat(keep), change, k_row, q_row, dk, count)
        out_row = out + ((token * n_v_heads + v_head) * dv + column) * 4
        store_values(F32, out_row, 0, count, mixed * splat(q_factor))


@kernel
def gated_delta_rule(
    spans: np.ndarray,
    tensors: tuple[int, ...],
    strides: tuple[int, int, int, int, int, int, int, int],
    heads: tuple[int, int, int, int],
) -> None:
    """See ``Kernels.gated_delta_rule``. spans: int64 ``[n, 4]``, states ``[n_v_heads, dk, dv]``.

    tensors: addresses of q, k, v, decay, beta, out; strides: bytes between rows and heads of q, k, v,
    and between rows of decay and beta; heads: (n_k_heads, n_v_heads, dk, dv).
    """
    n_k_heads, n_v_heads, dk, dv = heads
    for job in prange(len(spans) * n_v_heads):
        line, v_head = spans[job // n_v_heads], job % n_v_heads
        span = (line[0], line[1], line[2], line[3])
        k_head = v_head // (n_v_heads // n_k_heads)
        scratch = np.empty(dk * LANES, dtype=np.float32)
        for column in range(0, dv, LANES):
            _delta_columns(tensors, strides, (n_v_heads, dk, dv), span, k_head, v_head, column, scratch.ctypes.data)
