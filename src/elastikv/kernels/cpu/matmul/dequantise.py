"""Weights of any format to float32."""

from __future__ import annotations

from typing import Any

from numba import prange

from elastikv.kernels.cpu.formats.layout import load_values, store_values
from elastikv.kernels.cpu.formats.plain import F32
from elastikv.kernels.cpu.jit import kernel
from elastikv.kernels.cpu.simd.vector import LANES


@kernel
def dequantise(layout: Any, weight: int, row_stride: int, n_rows: int, n_in: int, out: int) -> None:
    """Weight rows, ``row_stride`` bytes apart, as float32, contiguous at ``out``."""
    for index in prange(n_rows):
        row, place = weight + index * row_stride, out + index * n_in * 4
        for start in range(0, n_in, LANES):
            store_values(F32, place, start, n_in, load_values(layout, row, 0, start, n_in))
