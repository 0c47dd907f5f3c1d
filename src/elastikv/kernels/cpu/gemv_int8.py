"""Products of a packed weight matrix with one vector, itself rounded to 8 bits in blocks of 32 values.

Reading 4-bit weights is faster than widening them to float32; whole-number products keep up with the
reading. Rounding x adds about 0.5 % relative rms error, beside the 8 % that q4_0 weights have.

Blocks go in pairs (64 values). Weights are stored without sign, ``w + bias``; because the sum over a block of
``(w + bias) x`` is too large by ``bias * sum(x)``, each pair's sums start at minus that, spread over its lanes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numba.extending import overload

from elastikv.kernels.cpu.blocks import Q8_0_BLOCKS
from elastikv.kernels.cpu.gemv import AHEAD, Matrix, Rows
from elastikv.kernels.cpu.jit import inlined, kernel
from elastikv.kernels.cpu.layouts import BLOCK
from elastikv.kernels.cpu.vector import load_f32, load_float, prefetch_once, store_float, store_i8
from elastikv.kernels.cpu.vector_math import absolute, max_lanes, maximum, round_even, splat, sum_lanes
from elastikv.kernels.cpu.x86 import dot_blocks

_ZERO = np.float32(0)
_ROWS_PER_JOB = 16
_PAIR = 2 * BLOCK
_VECTOR_BYTES = 64


def _pair_layout(layout: Any) -> tuple[int, int, int]:
    """(bytes of a pair of weight blocks, the bias divided by 8, lanes that one block's products fall into in a row)."""
    raise NotImplementedError


@overload(_pair_layout)
def _choose_pair_layout(layout: Any) -> Any:
    sizes = (68, 16, 8) if layout.label == Q8_0_BLOCKS.label else (36, 1, 4)

    def get(layout: Any) -> Any:
        return sizes

    return get


@inlined
def _round_pair(x: int, bias_eighth: int, run: int, out: int, start: np.ndarray, scales: np.ndarray) -> None:
    """64 values to int8 in the order that the weights' pair has, with the sums to start from and the scales by lane."""
    for block in range(2):
        low, high = load_f32(x + block * 128), load_f32(x + block * 128 + 64)
        top = max_lanes(maximum(absolute(low), absolute(high)))
        inverse = splat(np.float32(127) / top if top > 0 else _ZERO)
        low, high = round_even(low * inverse), round_even(high * inverse)
        total = np.int32(sum_lanes(low + high))
        lane = block * run
        store_i8(out + lane * 4, low)
        store_i8(out + (lane + 4 if run == 8 else lane + 8) * 4, high)
        for index in range(8):
            place = index // run * run * 2 + block * run + index % run
            start[place] = -bias_eighth * total
            scales[place] = top / np.float32(127)


@kernel
def multiply(layout: Any, matrix: Matrix, rows: Rows) -> None:
    """As ``gemv.multiply``, for a single row of x; n_in a multiple of 64."""
    weight, weight_stride, n_out, n_in, bias = matrix
    x, _, _, out, _ = rows
    pair_bytes, bias_eighth, run = _pair_layout(layout)
    n_pairs = n_in // _PAIR
    x_bytes = np.empty(n_in, dtype=np.int8)
    start = np.empty((n_pairs, 16), dtype=np.int32)
    scales = np.empty((n_pairs, 16), dtype=np.float32)
    for pair in range(n_pairs):
        place = x_bytes.ctypes.data + pair * _PAIR
        _round_pair(x + pair * _PAIR * 4, bias_eighth, run, place, start[pair], scales[pair])
    for job in prange((n_out + _ROWS_PER_JOB - 1) // _ROWS_PER_JOB):
        # Taken in here: an array is freed once nothing but its address is used.
        rounded, x_start, x_scales = x_bytes.ctypes.data, start.ctypes.data, scales.ctypes.data
        for index in range(job * _ROWS_PER_JOB, min((job + 1) * _ROWS_PER_JOB, n_out)):
            row = weight + index * weight_stride
            a = b = splat(_ZERO)
            for pair in range(0, n_pairs - 1, 2):
                blocks, offset = row + pair * pair_bytes, pair * _VECTOR_BYTES
                prefetch_once(blocks + AHEAD)
                prefetch_once(blocks + AHEAD + 64)
                a = a + dot_blocks(layout, blocks, rounded + offset, x_start + offset, x_scales + offset)
                offset += _VECTOR_BYTES
                b = b + dot_blocks(layout, blocks + pair_bytes, rounded + offset, x_start + offset, x_scales + offset)
            if n_pairs % 2:
                blocks, offset = row + (n_pairs - 1) * pair_bytes, (n_pairs - 1) * _VECTOR_BYTES
                a = a + dot_blocks(layout, blocks, rounded + offset, x_start + offset, x_scales + offset)
            add = load_float(bias + index * 4) if bias != 0 else _ZERO
            store_float(out + index * 4, sum_lanes(a + b) + add)
