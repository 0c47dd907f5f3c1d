"""Skinny GEMM in float32: ``x @ weight.T`` for a few rows of x, where reading the weights is what takes the time.

Every weight row is read once, front to back, by one thread, dequantised to float32 in registers and
multiplied with up to four rows of x at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numba.extending import overload

from elastikv.kernels.cpu.formats.layout import load_values
from elastikv.kernels.cpu.formats.plain import F32
from elastikv.kernels.cpu.formats.weights import BlockLayout
from elastikv.kernels.cpu.jit import inlined, kernel, typed
from elastikv.kernels.cpu.matmul.arguments import ROWS_PER_JOB, WEIGHTS_PREFETCH, Activations, Matrix
from elastikv.kernels.cpu.simd.math import fma, splat, store_sums, sum_lanes
from elastikv.kernels.cpu.simd.memory import load_f32, load_float, prefetch_l2, prefetch_once, store_float
from elastikv.kernels.cpu.simd.rows import four_rows
from elastikv.kernels.cpu.simd.vector import LANES, Scalar

_ZERO = np.float32(0)
_STRIP = 128
"""Packed values that one pass of the inner loop takes."""


@inlined
def _dot_plain(layout: Any, row: int, n_in: int, x: int, strip: int) -> Scalar:
    """One weight row times one row of x; four sums at once, for the latency.

    A pass takes ``strip`` values, 256 bytes: passes of 512 bytes cost 25 %, of 128 bytes 10 %. The processor foresees
    this pattern, but not across pages, and a row of 32-bit weights may be a whole one: prefetching saves 5 to 10 % with
    these and next to nothing with 16-bit weights. It costs 20 % where it goes to the first cache.
    """
    a = b = c = d = splat(_ZERO)
    whole = n_in // strip * strip
    for first in range(0, whole, strip):
        place = row + layout.row_bytes(first) + WEIGHTS_PREFETCH
        for line in range(0, layout.row_bytes(strip), 64):
            prefetch_l2(place + line)
        for start in range(first, first + strip, 64):
            a = fma(layout.load(row, 0, start), load_f32(x + start * 4), a)
            b = fma(layout.load(row, 0, start + 16), load_f32(x + start * 4 + 64), b)
            c = fma(layout.load(row, 0, start + 32), load_f32(x + start * 4 + 128), c)
            d = fma(layout.load(row, 0, start + 48), load_f32(x + start * 4 + 192), d)
    for start in range(whole, n_in, LANES):
        a = fma(load_values(layout, row, 0, start, n_in), load_values(F32, x, 0, start, n_in), a)
    return sum_lanes((a + b) + (c + d))


@inlined
def _dot_packed(layout: Any, row: int, n_in: int, x: int) -> Scalar:
    """One row of packed weights times one row of x; prefetching makes it 10 to 20 % faster."""
    a = b = c = d = splat(_ZERO)
    whole = n_in // _STRIP * _STRIP
    for start in range(0, whole, _STRIP):
        place = row + layout.row_bytes(start) + WEIGHTS_PREFETCH
        for line in range(0, layout.row_bytes(_STRIP), 64):
            prefetch_once(place + line)
        y = x + start * 4
        a = layout.dot_block(row, start, y, a)
        b = layout.dot_block(row, start + 32, y + 128, b)
        c = layout.dot_block(row, start + 64, y + 256, c)
        d = layout.dot_block(row, start + 96, y + 384, d)
    for start in range(whole, n_in, 32):
        a = layout.dot_block(row, start, x + start * 4, a)
    return sum_lanes((a + b) + (c + d))


def _dot_1(layout: Any, row: int, n_in: int, x: int) -> Scalar:
    """One weight row times one row of x."""
    raise NotImplementedError


@typed(overload(_dot_1))
def _choose_dot_1(layout: Any, row: Any, n_in: Any, x: Any) -> Any:
    if isinstance(layout.layout, BlockLayout):

        def packed(layout: Any, row: Any, n_in: Any, x: Any) -> Any:
            return _dot_packed(layout, row, n_in, x)

        return packed
    strip = 256 // layout.layout.value_bytes

    def plain(layout: Any, row: Any, n_in: Any, x: Any) -> Any:
        return _dot_plain(layout, row, n_in, x, strip)

    return plain


@inlined
def _dot_4(layout: Any, row: int, n_in: int, x: Any, out: int) -> None:
    """One weight row times four rows of x; writes four consecutive float32."""
    a = b = c = d = splat(_ZERO)
    for start in range(0, n_in, LANES):
        w = load_values(layout, row, 0, start, n_in)
        a = fma(w, load_values(F32, x[0], 0, start, n_in), a)
        b = fma(w, load_values(F32, x[1], 0, start, n_in), b)
        c = fma(w, load_values(F32, x[2], 0, start, n_in), c)
        d = fma(w, load_values(F32, x[3], 0, start, n_in), d)
    store_sums(out, a, b, c, d)


@inlined
def multiply_one(layout: Any, matrix: Matrix, activations: Activations, begin: int, end: int) -> None:
    """Weight rows ``begin..end`` times a single row of x."""
    weight, weight_stride, _, n_in, bias = matrix
    x, _, _, out, _ = activations
    for index in range(begin, end):
        add = load_float(bias + index * 4) if bias != 0 else _ZERO
        store_float(out + index * 4, _dot_1(layout, weight + index * weight_stride, n_in, x) + add)


@inlined
def multiply_several(layout: Any, matrix: Matrix, activations: Activations, begin: int, end: int) -> None:
    """Weight rows ``begin..end`` times each row of x."""
    weight, weight_stride, _, n_in, bias = matrix
    x, x_stride, n, out, out_stride = activations
    sums = np.empty(4, dtype=np.float32)
    for index in range(begin, end):
        row = weight + index * weight_stride
        add = load_float(bias + index * 4) if bias != 0 else _ZERO
        for first in range(0, n, 4):
            _dot_4(layout, row, n_in, four_rows(x, x_stride, first, n - 1), sums.ctypes.data)
            for member in range(min(n - first, 4)):
                store_float(out + (first + member) * out_stride + index * 4, sums[member] + add)


@kernel
def multiply(layout: Any, matrix: Matrix, activations: Activations) -> None:
    """``out = x @ weight.T + bias`` for a few rows of x, float32."""
    n_out, n = matrix[2], activations[2]
    n_jobs = (n_out + ROWS_PER_JOB - 1) // ROWS_PER_JOB
    if n == 1:
        for job in prange(n_jobs):
            begin = job * ROWS_PER_JOB
            multiply_one(layout, matrix, activations, begin, min(begin + ROWS_PER_JOB, n_out))
    else:
        for job in prange(n_jobs):
            begin = job * ROWS_PER_JOB
            multiply_several(layout, matrix, activations, begin, min(begin + ROWS_PER_JOB, n_out))
