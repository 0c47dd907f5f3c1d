"""Root-mean-square norms and gates, fused so that each value is read once or twice.

Rows are spread over the threads only when there is enough to do; waking them costs more than one row.
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from elastikv.kernels.cpu.formats.layout import load_values, store_values
from elastikv.kernels.cpu.formats.plain import F32
from elastikv.kernels.cpu.jit import inlined, kernel
from elastikv.kernels.cpu.simd.math import fma, sigmoid, silu, splat, sum_lanes
from elastikv.kernels.cpu.simd.vector import LANES

MIN_PARALLEL = 1 << 14
"""Values below which one thread is faster."""

_ZERO = np.float32(0)


@inlined
def inverse_rms(x: int, d: int, eps: float) -> np.float32:
    """``1 / sqrt(mean(x^2) + eps)`` of d values."""
    squares = splat(_ZERO)
    for start in range(0, d, LANES):
        value = load_values(F32, x, 0, start, d)
        squares = fma(value, value, squares)
    return np.float32(1 / math.sqrt(sum_lanes(squares) / d + eps))


@inlined
def _norm_row(x: int, weight: int, d: int, eps: float, out: int) -> None:
    factor = splat(inverse_rms(x, d, eps))
    for start in range(0, d, LANES):
        value = load_values(F32, x, 0, start, d) * factor
        store_values(F32, out, start, d, value * load_values(F32, weight, 0, start, d))


@inlined
def _add_norm_row(x: int, residual: int, weight: int, d: int, eps: float, out: int) -> None:
    for start in range(0, d, LANES):
        total = load_values(F32, residual, 0, start, d) + load_values(F32, x, 0, start, d)
        store_values(F32, residual, start, d, total)
    _norm_row(residual, weight, d, eps, out)


@inlined
def _gated_norm_row(x: int, gate: int, weight: int, d: int, eps: float, out: int) -> None:
    factor = splat(inverse_rms(x, d, eps))
    for start in range(0, d, LANES):
        value = load_values(F32, x, 0, start, d) * factor * load_values(F32, weight, 0, start, d)
        store_values(F32, out, start, d, value * silu(load_values(F32, gate, 0, start, d)))


@inlined
def _silu_mul_row(gate: int, up: int, d: int, out: int) -> None:
    for start in range(0, d, LANES):
        value = silu(load_values(F32, gate, 0, start, d)) * load_values(F32, up, 0, start, d)
        store_values(F32, out, start, d, value)


@inlined
def _sigmoid_mul_row(x: int, gate: int, d: int) -> None:
    for start in range(0, d, LANES):
        value = load_values(F32, x, 0, start, d) * sigmoid(load_values(F32, gate, 0, start, d))
        store_values(F32, x, start, d, value)


@kernel
def rms_norm(x: int, x_stride: int, weight: int, n: int, d: int, eps: float, out: int) -> None:
    """Addresses; ``x_stride`` in bytes; out ``[n, d]`` contiguous."""
    if n * d < MIN_PARALLEL:
        for row in range(n):
            _norm_row(x + row * x_stride, weight, d, eps, out + row * d * 4)
    else:
        for row in prange(n):
            _norm_row(x + row * x_stride, weight, d, eps, out + row * d * 4)


@kernel
def add_rms_norm(x: int, residual: int, weight: int, n: int, d: int, eps: float, out: int) -> None:
    """Addresses of contiguous ``[n, d]``; residual is updated."""
    if n * d < MIN_PARALLEL:
        for row in range(n):
            offset = row * d * 4
            _add_norm_row(x + offset, residual + offset, weight, d, eps, out + offset)
    else:
        for row in prange(n):
            offset = row * d * 4
            _add_norm_row(x + offset, residual + offset, weight, d, eps, out + offset)


@kernel
def gated_rms_norm(
    x: int,
    x_strides: tuple[int, int],
    gate: int,
    gate_strides: tuple[int, int],
    weight: int,
    shape: tuple[int, int, int],
    eps: float,
    out: int,
) -> None:
    """Addresses of ``[n, heads, d]``, out contiguous; strides in bytes, between rows and heads."""
    n, heads, d = shape
    if n * heads * d < MIN_PARALLEL:
        for job in range(n * heads):
            row, head = job // heads, job % heads
            x_row = x + row * x_strides[0] + head * x_strides[1]
            gate_row = gate + row * gate_strides[0] + head * gate_strides[1]
            _gated_norm_row(x_row, gate_row, weight, d, eps, out + job * d * 4)
    else:
        for job in prange(n * heads):
            row, head = job // heads, job % heads
            x_row = x + row * x_strides[0] + head * x_strides[1]
            gate_row = gate + row * gate_strides[0] + head * gate_strides[1]
            _gated_norm_row(x_row, gate_row, weight, d, eps, out + job * d * 4)


@kernel
def silu_mul(gate_up: int, stride: int, n: int, d: int, out: int) -> None:
    """Address of ``[n, 2 * d]``, rows ``stride`` bytes apart; out ``[n, d]`` contiguous."""
    if n * d < MIN_PARALLEL:
        for row in range(n):
            _silu_mul_row(gate_up + row * stride, gate_up + row * stride + d * 4, d, out + row * d * 4)
    else:
        for row in prange(n):
            _silu_mul_row(gate_up + row * stride, gate_up + row * stride + d * 4, d, out + row * d * 4)


@kernel
def sigmoid_mul(x: int, gate: int, gate_stride: int, n: int, d: int) -> None:
    """Address of x, contiguous ``[n, d]``, changed in place; rows of the gate ``gate_stride`` bytes apart."""
    if n * d < MIN_PARALLEL:
        for row in range(n):
            _sigmoid_mul_row(x + row * d * 4, gate + row * gate_stride, d)
    else:
        for row in prange(n):
            _sigmoid_mul_row(x + row * d * 4, gate + row * gate_stride, d)
