"""Skinny GEMM with weights in bfloat16 and x rounded to it, sums in float32.

Where weights are read for several rows of x at once, float32 arithmetic is no longer hidden behind the reading;
these instructions do twice as much of it. Weight rows go two at a time, by one thread, past four or eight rows of x:
both share what is read of these.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from elastikv.kernels.cpu.formats.layout import load_values, store_values
from elastikv.kernels.cpu.formats.plain import BF16, F32
from elastikv.kernels.cpu.jit import inlined, kernel
from elastikv.kernels.cpu.matmul.arguments import ROWS_PER_JOB, WEIGHTS_PREFETCH, Activations, Matrix
from elastikv.kernels.cpu.simd.bf16 import dot_pairs
from elastikv.kernels.cpu.simd.math import splat, store_sums
from elastikv.kernels.cpu.simd.memory import load_float, prefetch_once, store_float
from elastikv.kernels.cpu.simd.vector import LANES

_ZERO = np.float32(0)


@inlined
def _dot_2x4(layout: Any, row: int, next_row: int, n_in: int, x: int, last: int, out: int) -> None:
    """Two weight rows times four rows of x (those behind ``last`` repeat it); writes four float32 per weight row."""
    stride = n_in * 2
    x1, x2, x3 = x + min(1, last) * stride, x + min(2, last) * stride, x + min(3, last) * stride
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = splat(_ZERO)
    for start in range(0, n_in, 32):
        prefetch_once(row + layout.row_bytes(start) + WEIGHTS_PREFETCH)
        prefetch_once(next_row + layout.row_bytes(start) + WEIGHTS_PREFETCH)
        a, b = layout.load_bf16(row, start), layout.load_bf16(next_row, start)
        y = BF16.load_bf16(x, start)
        a0, b0 = dot_pairs(a, y, a0), dot_pairs(b, y, b0)
        y = BF16.load_bf16(x1, start)
        a1, b1 = dot_pairs(a, y, a1), dot_pairs(b, y, b1)
        y = BF16.load_bf16(x2, start)
        a2, b2 = dot_pairs(a, y, a2), dot_pairs(b, y, b2)
        y = BF16.load_bf16(x3, start)
        a3, b3 = dot_pairs(a, y, a3), dot_pairs(b, y, b3)
    store_sums(out, a0, a1, a2, a3)
    store_sums(out + 16, b0, b1, b2, b3)


@inlined
def _dot_2x8(layout: Any, row: int, next_row: int, n_in: int, x: int, last: int, out: int) -> None:
    """Two weight rows times eight rows of x (those behind ``last`` repeat it); writes eight float32 per weight row."""
    stride = n_in * 2
    x1, x2, x3 = x + min(1, last) * stride, x + min(2, last) * stride, x + min(3, last) * stride
    x4, x5, x6 = x + min(4, last) * stride, x + min(5, last) * stride, x + min(6, last) * stride
    x7 = x + min(7, last) * stride
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = splat(_ZERO)
    b0 = b1 = b2 = b3 = b4 = b5 = b6 = b7 = splat(_ZERO)
    for start in range(0, n_in, 32):
        prefetch_once(row + layout.row_bytes(start) + WEIGHTS_PREFETCH)
        prefetch_once(next_row + layout.row_bytes(start) + WEIGHTS_PREFETCH)
        a, b = layout.load_bf16(row, start), layout.load_bf16(next_row, start)
        y = BF16.load_bf16(x, start)
        a0, b0 = dot_pairs(a, y, a0), dot_pairs(b, y, b0)
        y = BF16.load_bf16(x1, start)
        a1, b1 = dot_pairs(a, y, a1), dot_pairs(b, y, b1)
        y = BF16.load_bf16(x2, start)
        a2, b2 = dot_pairs(a, y, a2), dot_pairs(b, y, b2)
        y = BF16.load_bf16(x3, start)
        a3, b3 = dot_pairs(a, y, a3), dot_pairs(b, y, b3)
        y = BF16.load_bf16(x4, start)
        a4, b4 = dot_pairs(a, y, a4), dot_pairs(b, y, b4)
        y = BF16.load_bf16(x5, start)
        a5, b5 = dot_pairs(a, y, a5), dot_pairs(b, y, b5)
        y = BF16.load_bf16(x6, start)
        a6, b6 = dot_pairs(a, y, a6), dot_pairs(b, y, b6)
        y = BF16.load_bf16(x7, start)
        a7, b7 = dot_pairs(a, y, a7), dot_pairs(b, y, b7)
    store_sums(out, a0, a1, a2, a3)
    store_sums(out + 16, a4, a5, a6, a7)
    store_sums(out + 32, b0, b1, b2, b3)
    store_sums(out + 48, b4, b5, b6, b7)


@inlined
def multiply_several(layout: Any, matrix: Matrix, activations: Activations, begin: int, end: int) -> None:
    """Weight rows ``begin..end`` times each row of x, bfloat16 and contiguous."""
    weight, weight_stride, _, n_in, bias = matrix
    x, _, n, out, out_stride = activations
    sums = np.empty(16, dtype=np.float32)
    place = sums.ctypes.data
    for index in range(begin, end, 2):
        row = weight + index * weight_stride
        n_rows = min(end - index, 2)
        next_row = row + (n_rows - 1) * weight_stride
        for first in range(0, n, 8):
            count, members = min(n - first, 8), x + first * n_in * 2
            wide = 4 if count <= 4 else 8
            if wide == 4:
                _dot_2x4(layout, row, next_row, n_in, members, count - 1, place)
            else:
                _dot_2x8(layout, row, next_row, n_in, members, count - 1, place)
            for which in range(n_rows):
                target = out + first * out_stride + (index + which) * 4
                add = load_float(bias + (index + which) * 4) if bias != 0 else _ZERO
                for member in range(count):
                    store_float(target + member * out_stride, sums[which * wide + member] + add)


@kernel
def multiply_rounded(layout: Any, matrix: Matrix, activations: Activations) -> None:
    """``out = x @ weight.T + bias`` for a few rows of x, bfloat16 and contiguous; n_in is a multiple of 32."""
    n_out = matrix[2]
    for job in prange((n_out + ROWS_PER_JOB - 1) // ROWS_PER_JOB):
        begin = job * ROWS_PER_JOB
        multiply_several(layout, matrix, activations, begin, min(begin + ROWS_PER_JOB, n_out))


@inlined
def round_rows(activations: Activations, rounded: np.ndarray) -> None:
    """x as bfloat16 ``[n, n_in]``, in an array of uint16."""
    n, n_in = rounded.shape
    for row in range(n):
        source, target = activations[0] + row * activations[1], rounded.ctypes.data + row * n_in * 2
        for start in range(0, n_in, LANES):
            store_values(BF16, target, start, n_in, load_values(F32, source, 0, start, n_in))


@inlined
def _multiply_array(layout: Any, matrix: Matrix, activations: Activations, rounded: np.ndarray) -> None:
    """Takes the array itself: it is freed once its owner needs no more than its address."""
    multiply_rounded(layout, matrix, (rounded.ctypes.data, 0, activations[2], activations[3], activations[4]))


@inlined
def multiply(layout: Any, matrix: Matrix, activations: Activations) -> None:
    """``out = x @ weight.T + bias`` for a few rows of x, float32; n_in is a multiple of 32. For compiled callers."""
    rounded = np.empty((activations[2], matrix[3]), dtype=np.uint16)
    round_rows(activations, rounded)
    _multiply_array(layout, matrix, activations, rounded)
