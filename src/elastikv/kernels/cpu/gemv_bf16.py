"""Products of a weight matrix with a few vectors, both rounded to bfloat16, sums in float32.

Where weights are read for several vectors at once, float32 arithmetic is no longer hidden behind the reading;
these instructions do twice as much of it. Every weight row is read once, by one thread, two rows at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from elastikv.kernels.cpu.jit import inlined, kernel
from elastikv.kernels.cpu.layouts import BF16
from elastikv.kernels.cpu.vector import load_float, store_float
from elastikv.kernels.cpu.vector_math import splat, store_sums
from elastikv.kernels.cpu.x86 import dot_pairs, load_pairs

_ZERO = np.float32(0)
_ROWS_PER_JOB = 16


@inlined
def _dot_2x4(layout: Any, row: int, next_row: int, n_in: int, x: int, last: int, out: int) -> None:
    """Two weight rows times four vectors (those behind ``last`` repeat it); writes four float32 per weight row."""
    stride = n_in * 2
    x1, x2, x3 = x + min(1, last) * stride, x + min(2, last) * stride, x + min(3, last) * stride
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = splat(_ZERO)
    for start in range(0, n_in, 32):
        a, b = load_pairs(layout, row, start), load_pairs(layout, next_row, start)
        y = load_pairs(BF16, x, start)
        a0, b0 = dot_pairs(a, y, a0), dot_pairs(b, y, b0)
        y = load_pairs(BF16, x1, start)
        a1, b1 = dot_pairs(a, y, a1), dot_pairs(b, y, b1)
        y = load_pairs(BF16, x2, start)
        a2, b2 = dot_pairs(a, y, a2), dot_pairs(b, y, b2)
        y = load_pairs(BF16, x3, start)
        a3, b3 = dot_pairs(a, y, a3), dot_pairs(b, y, b3)
    store_sums(out, a0, a1, a2, a3)
    store_sums(out + 16, b0, b1, b2, b3)


@kernel
def multiply(
    layout: Any,
    weight: int,
    weight_stride: int,
    n_out: int,
    n_in: int,
    x: int,
    n: int,
    bias: int,
    out: int,
    out_stride: int,
) -> None:
    """``out = x @ weight.T + bias``: x bfloat16 ``[n, n_in]`` contiguous, n_in a multiple of 32.

    Otherwise as ``gemv.multiply``.
    """
    for job in prange((n_out + _ROWS_PER_JOB - 1) // _ROWS_PER_JOB):
        sums = np.empty(8, dtype=np.float32)
        for index in range(job * _ROWS_PER_JOB, min((job + 1) * _ROWS_PER_JOB, n_out), 2):
            row = weight + index * weight_stride
            n_rows = min(n_out - index, 2)
            for first in range(0, n, 4):
                count, group = min(n - first, 4), x + first * n_in * 2
                _dot_2x4(layout, row, row + (n_rows - 1) * weight_stride, n_in, group, count - 1, sums.ctypes.data)
                for which in range(n_rows):
                    place = out + first * out_stride + (index + which) * 4
                    add = load_float(bias + (index + which) * 4) if bias != 0 else _ZERO
                    for member in range(count):
                        store_float(place + member * out_stride, sums[which * 4 + member] + add)
