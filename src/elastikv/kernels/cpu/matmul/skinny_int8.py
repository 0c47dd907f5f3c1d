"""Packed weights times a single row of x, quantised to 8 bits in blocks of 32 values; for more rows, see ``gemm_int8``.

Reading 4-bit weights is faster than dequantising them to float32; products of integers keep up with the
reading. Quantising x adds about 0.5 % relative rms error, beside the 8 % that q4_0 weights have.

x goes in pairs of blocks (64 values), as ``BlockLayout.dot_int8`` takes them. Weights are stored without sign, ``w +
bias``; because a sum of ``(w + bias) x`` is too large by ``bias * sum(x)``, sums start at minus that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from elastikv.kernels.cpu.jit import inlined, kernel
from elastikv.kernels.cpu.matmul.arguments import ROWS_PER_JOB, WEIGHTS_PREFETCH, Activations, Matrix
from elastikv.kernels.cpu.simd.math import absolute, max_lanes, maximum, round_even, splat, sum_lanes
from elastikv.kernels.cpu.simd.memory import load_f32, load_float, prefetch_once, store_float, store_i8
from elastikv.kernels.cpu.simd.vector import Scalar

_ZERO = np.float32(0)
_PAIR = 64
"""Values of two blocks."""


@inlined
def _quantise_pair(x: int, bias_quarter: int, run: int, out: int, start: np.ndarray, scales: np.ndarray) -> None:
    """64 values to int8 in the order that the weights' pair has, with the sums to start from and the scales by lane.

    Sixteen values fall into four lanes, which start at ``-bias_quarter`` times their sum.
    """
    for block in range(2):
        low, high = load_f32(x + block * 128), load_f32(x + block * 128 + 64)
        top = max_lanes(maximum(absolute(low), absolute(high)))
        inverse = splat(np.float32(127) / top if top > 0 else _ZERO)
        low, high = round_even(low * inverse), round_even(high * inverse)
        low_start = -bias_quarter * np.int32(sum_lanes(low))
        high_start = -bias_quarter * np.int32(sum_lanes(high))
        low_lane = block * run
        high_lane = low_lane + (4 if run == 8 else 8)
        store_i8(out + low_lane * 4, low)
        store_i8(out + high_lane * 4, high)
        for index in range(4):
            start[low_lane + index] = low_start
            start[high_lane + index] = high_start
            scales[low_lane + index] = scales[high_lane + index] = top / np.float32(127)


@inlined
def _dot_1(layout: Any, row: int, n_groups: int, quantised: Any) -> Scalar:
    """One weight row times one quantised row of x; two sums at once, for the latency."""
    n_pairs, _, _ = layout.int8_group
    group_bytes = layout.row_bytes(n_pairs * _PAIR)
    x, start, scales = quantised
    a = b = splat(_ZERO)
    for group in range(0, n_groups - 1, 2):
        blocks, offset = row + group * group_bytes, group * n_pairs * _PAIR
        for line in range(0, 2 * group_bytes, 64):
            prefetch_once(blocks + WEIGHTS_PREFETCH + line)
        a = layout.dot_int8(blocks, x + offset, start + offset, scales + offset, a)
        offset += n_pairs * _PAIR
        b = layout.dot_int8(blocks + group_bytes, x + offset, start + offset, scales + offset, b)
    if n_groups % 2:
        blocks, offset = row + (n_groups - 1) * group_bytes, (n_groups - 1) * n_pairs * _PAIR
        a = layout.dot_int8(blocks, x + offset, start + offset, scales + offset, a)
    return sum_lanes(a + b)


@inlined
def _offset(addresses: Any, offset: int) -> tuple[int, int, int]:
    """Addresses in all three arrays, ``offset`` bytes further: a pair takes 64 in each."""
    return (addresses[0] + offset, addresses[1] + offset, addresses[2] + offset)


@inlined
def multiply_one(layout: Any, matrix: Matrix, out: int, quantised: Any, begin: int, end: int) -> None:
    """Weight rows ``begin..end`` times a single row of x."""
    weight, weight_stride, _, n_in, bias = matrix
    n_groups = n_in // (layout.int8_group[0] * _PAIR)
    for index in range(begin, end):
        add = load_float(bias + index * 4) if bias != 0 else _ZERO
        store_float(out + index * 4, _dot_1(layout, weight + index * weight_stride, n_groups, quantised) + add)


@inlined
def empty_rows(n: int, n_in: int) -> Any:
    """Room for n quantised rows: their values, what sums start from, and scales."""
    x_bytes = np.empty((n, n_in), dtype=np.int8)
    start = np.empty((n, n_in // _PAIR, 16), dtype=np.int32)
    scales = np.empty((n, n_in // _PAIR, 16), dtype=np.float32)
    return (x_bytes, start, scales)


@inlined
def quantise_row(layout: Any, x: int, rows: Any, row: int) -> None:
    """Quantise the row of x at an address, in the order that the layout has, to a row of ``empty_rows``."""
    x_bytes, start, scales = rows
    n_in = x_bytes.shape[1]
    _, bias_quarter, run = layout.int8_group
    for pair in range(n_in // _PAIR):
        place = x_bytes.ctypes.data + row * n_in + pair * _PAIR
        _quantise_pair(x + pair * _PAIR * 4, bias_quarter, run, place, start[row, pair], scales[row, pair])


@inlined
def addresses_of(rows: Any, row: int) -> tuple[int, int, int]:
    """Addresses of a row of ``empty_rows``, to be taken inside the loop that uses them.

    An array is freed once nothing but its address is used.
    """
    x_bytes, start, scales = rows
    return _offset((x_bytes.ctypes.data, start.ctypes.data, scales.ctypes.data), row * x_bytes.shape[1])


@kernel
def multiply(layout: Any, matrix: Matrix, activations: Activations) -> None:
    """``out = x @ weight.T + bias`` for one row of x, float32; n_in is a multiple of 64."""
    n_out, n_in = matrix[2], matrix[3]
    quantised = empty_rows(1, n_in)
    quantise_row(layout, activations[0], quantised, 0)
    for job in prange((n_out + ROWS_PER_JOB - 1) // ROWS_PER_JOB):
        begin = job * ROWS_PER_JOB
        end = min(begin + ROWS_PER_JOB, n_out)
        multiply_one(layout, matrix, activations[3], addresses_of(quantised, 0), begin, end)
