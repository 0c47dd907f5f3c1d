"""The short causal convolution of a gated delta net.

Jobs are table lines, one per sequence: addresses of the state to read and to write (which may be the
same), and the rows of the sequence's tokens, ``[start, stop)``.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from elastikv.kernels.cpu.formats.layout import load_values, store_values
from elastikv.kernels.cpu.formats.plain import F32
from elastikv.kernels.cpu.jit import inlined, kernel
from elastikv.kernels.cpu.simd.math import fma, silu, splat
from elastikv.kernels.cpu.simd.memory import load_f32_strided, store_f32_strided
from elastikv.kernels.cpu.simd.vector import LANES, Vector

MAX_TAPS = 4
"""Widest convolution: what one thread keeps in registers."""

_ZERO = np.float32(0)


@inlined
def _tap(address: int, stride: int, index: int, count: int) -> Vector:
    """Column ``index`` of 16 channels' taps or history; zeros before the first."""
    if index < 0:
        return splat(_ZERO)
    return load_f32_strided(address + index * 4, stride, count)


@inlined
def _convolve_block(
    x: int, x_stride: int, weight: int, width: int, source: int, target: int, n: int, count: int, out: int, d: int
) -> None:
    """All of a sequence's new tokens in up to 16 channels; addresses are those of the first channel."""
    missing, stride, state_stride = MAX_TAPS - width, width * 4, (width - 1) * 4
    w0 = _tap(weight, stride, -missing, count)
    w1 = _tap(weight, stride, 1 - missing, count)
    w2 = _tap(weight, stride, 2 - missing, count)
    w3 = _tap(weight, stride, 3 - missing, count)
    x0 = _tap(source, state_stride, -missing, count)
    x1 = _tap(source, state_stride, 1 - missing, count)
    x2 = _tap(source, state_stride, 2 - missing, count)
    for token in range(n):
        x3 = load_values(F32, x + token * x_stride, 0, 0, count)
        total = fma(w3, x3, fma(w2, x2, fma(w1, x1, w0 * x0)))
        store_values(F32, out + token * d * 4, 0, count, silu(total))
        x0, x1, x2 = x1, x2, x3
    if width == 4:
        store_f32_strided(target, x0, state_stride, count)
    if width >= 3:
        store_f32_strided(target + (width - 3) * 4, x1, state_stride, count)
    if width >= 2:
        store_f32_strided(target + (width - 2) * 4, x2, state_stride, count)


@kernel
def causal_conv(spans: np.ndarray, x: int, x_stride: int, weight: int, channels: int, width: int, out: int) -> None:
    """Depthwise causal convolution and SiLU. spans: int64 ``[n, 4]``, states ``[channels, width - 1]``; width <= 4.

    x: rows ``x_stride`` bytes apart; weight ``[channels, width]``; out ``[n, channels]``; contiguous.
    """
    n_blocks = (channels + LANES - 1) // LANES
    for job in prange(len(spans) * n_blocks):
        source, target, start, stop = spans[job // n_blocks]
        first = job % n_blocks * LANES
        state_offset = first * (width - 1) * 4
        _convolve_block(
            x + start * x_stride + first * 4,
            x_stride,
            weight + first * width * 4,
            width,
            source + state_offset,
            target + state_offset,
            stop - start,
            min(channels - first, LANES),
            out + (start * channels + first) * 4,
            channels,
        )
