"""GEMM with packed weights and x quantised to 8 bits, in blocks of 32 values; for one row of x as for a thousand.

Weights stay packed in memory. A panel of their rows is unpacked to bytes (``simd/int8_panel``), a chunk at a time that
stays in the caches, and multiplied with all rows of x, a few at a time (``simd/int8_tile``). x is quantised once for
all panels, and laid out as tiles read it. Quantising adds about 0.5 % relative rms error, beside the 8 % that q4_0
weights have. A single row of x is multiplied with what is unpacked as it comes (``simd/int8_row``, ``simd/int8_dots``).

Each row of x gives the same bits, however many others are beside it and whichever thread computes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numba.extending import overload

from elastikv.kernels.cpu.formats.layout import load_values, store_values
from elastikv.kernels.cpu.formats.plain import F32
from elastikv.kernels.cpu.jit import inlined, kernel, typed
from elastikv.kernels.cpu.matmul.arguments import Activations, Matrix
from elastikv.kernels.cpu.simd.int8_dots import BLOCKS, VALUES, add_blocks
from elastikv.kernels.cpu.simd.int8_panel import BLOCK, GROUPS, PANEL_ROWS
from elastikv.kernels.cpu.simd.int8_tile import WIDTHS, tile
from elastikv.kernels.cpu.simd.math import absolute, max_lanes, maximum, round_even, splat, sum_lanes
from elastikv.kernels.cpu.simd.memory import copy_half, load_f32, store_float, store_i8, store_int
from elastikv.kernels.cpu.simd.vector import LANES

_ZERO = np.float32(0)
_WIDEST = WIDTHS[-1]

CHUNK = 512
"""Values of a row that are unpacked at once. A multiple of 256, the largest block of the packed types."""

_SHORT_CHUNK = 256
"""The same for few rows of x: unpacking takes most of the time then, and what it writes should stay in the first cache.
Where there are many rows, that matters less, and writing their sums less often gains more."""

_SHORT_CHUNK_ROWS = 16
"""Rows of x up to which the short one is faster."""

_LINE = 64
"""Bytes of a cache line. Vectors of a panel lie in one each."""

X_VALUES = 1 << 22
"""Values of x that are quantised at once; with more, weights are unpacked again."""

SCRATCH_BYTES = 6 << 20
"""At most: x takes up to 44 bytes for 32 values. Panels are small beside that."""

_FEW_ROWS = 16
"""Rows of x that a single thread quantises before others would have begun to."""


_JOB_ROWS = 64
"""Weight rows that a thread multiplies at a time with a single row of x."""


# --- x


@inlined
def padded_rows(n: int) -> int:
    """Rows of x with those that fill the last tile."""
    return n + n % 2 if n > 1 else 1


@inlined
def quantised_bytes(layout: Any, n: int, n_in: int) -> int:
    """Room for n quantised rows."""
    token_bytes: int = layout.panel_numbers[1]
    n_blocks = _padded_blocks(n_in) if n == 1 else padded_rows(n) * (n_in // BLOCK)
    return n_blocks * token_bytes


@inlined
def _padded_blocks(n_in: int) -> int:
    """Blocks of x as ``int8_dots`` has them."""
    return (n_in + VALUES - 1) // VALUES * BLOCKS


@inlined
def _tile_width(first: int, n: int) -> int:
    """Rows of x in the tile that begins with one of them."""
    return min(_WIDEST, padded_rows(n) - first)


@inlined
def _quantise_block(layout: Any, x: int, values: int, numbers: int, stride: int) -> None:
    """32 float32 to int8 at ``values``, and ``numbers`` of them, ``stride`` bytes apart: their scale, then starts."""
    _, _, bias, kind = layout.panel_numbers
    low, high = load_f32(x), load_f32(x + 64)
    top = max_lanes(maximum(absolute(low), absolute(high)))
    inverse = splat(np.float32(127) / top if top > 0 else _ZERO)
    low, high = round_even(low * inverse), round_even(high * inverse)
    store_i8(values, low)
    store_i8(values + 16, high)
    store_float(numbers, top / np.float32(127))
    if kind == 2:
        store_int(numbers + stride, np.int32(-bias) * np.int32(sum_lanes(low)))
        store_int(numbers + 2 * stride, np.int32(-bias) * np.int32(sum_lanes(high)))
    elif kind == 1:
        store_float(numbers + stride, sum_lanes(low + high))
    else:
        store_int(numbers + stride, np.int32(-bias) * np.int32(sum_lanes(low + high)))


@inlined
def _quantise_in_order(layout: Any, x: int, n_in: int, out: int) -> None:
    """A single row of x as ``int8_dots`` has it."""
    n_blocks = _padded_blocks(n_in)
    numbers = out + n_blocks * BLOCK
    for block in range(n_in // BLOCK):
        _quantise_block(layout, x + block * BLOCK * 4, out + block * BLOCK, numbers + 4 * block, 4 * n_blocks)
    for block in range(n_in // BLOCK, n_blocks):
        store_float(numbers + 4 * block, _ZERO)


@inlined
def quantise_row(layout: Any, rows: tuple[int, int, int, int], row: int, out: int) -> None:
    """One row of x to its place in ``out``; a row behind the last repeats it. rows: address, stride, n, n_in of x."""
    x, x_stride, n, n_in = rows
    if layout.in_order and n == 1:
        _quantise_in_order(layout, x, n_in, out)
        return
    token_bytes, n_blocks = layout.panel_numbers[1], n_in // BLOCK
    first = row // _WIDEST * _WIDEST
    width, source = _tile_width(first, n), x + min(row, n - 1) * x_stride
    place = out + first * n_blocks * token_bytes
    for block in range(n_blocks):
        values = place + block * width * token_bytes
        numbers = values + BLOCK * width + 4 * (row - first)
        _quantise_block(layout, source + block * BLOCK * 4, values + BLOCK * (row - first), numbers, 4 * width)


# --- panels


@inlined
def _unpack_panel(layout: Any, rows: int, first: int, n_values: int, out: int, ahead: int) -> None:
    """Values ``first .. first + n_values - 1`` of the rows whose addresses are at ``rows``.

    ahead: address of as many bytes that will be needed next.
    """
    group_bytes = layout.panel_numbers[0]
    n_blocks = n_values // layout.block_values
    for block in range(n_blocks):
        offset = layout.row_bytes(first + block * layout.block_values)
        place = out + block * (layout.block_values // BLOCK) * GROUPS * group_bytes
        for group in range(GROUPS):
            layout.unpack_block(rows + group * LANES * 8, offset, place + group * group_bytes, ahead)
            ahead += LANES * layout.block_bytes


@inlined
def _copy_columns(source: int, source_stride: int, n: int, count: int, out: int, out_stride: int) -> None:
    """The first ``count`` columns of float32 rows to others."""
    for row in range(n):
        for start in range(0, count, LANES):
            value = load_values(F32, source + row * source_stride, 0, start, count)
            store_values(F32, out + row * out_stride, start, count, value)


def _multiply_tile(layout: Any, width: int, weights: int, x: int, n_blocks: int, start: Any, out: Any) -> None:
    """See ``int8_tile.tile``. start, out: each an address and a stride."""
    raise NotImplementedError


@typed(overload(_multiply_tile))
def _choose_tile(layout: Any, width: Any, weights: Any, x: Any, n_blocks: Any, start: Any, out: Any) -> Any:
    narrow, wide = (tile(layout.layout.panel, each) for each in WIDTHS)

    def apply(layout: Any, width: Any, weights: Any, x: Any, n_blocks: Any, start: Any, out: Any) -> Any:
        if width == _WIDEST:
            wide(weights, x, n_blocks, start[0], start[1], out[0], out[1])
        else:
            narrow(weights, x, n_blocks, start[0], start[1], out[0], out[1])

    return apply


@inlined
def _multiply_panel(
    layout: Any, matrix: Matrix, activations: Activations, quantised: int, begin: int, end: int
) -> None:
    """Weight rows ``begin..end``, at most ``PANEL_ROWS``, times all rows of x."""
    weight, weight_stride, _, n_in, bias = matrix
    _, _, n, out, out_stride = activations
    group_bytes, token_bytes, _, _ = layout.panel_numbers
    count = end - begin
    rows = np.empty(PANEL_ROWS, dtype=np.int64)
    for row in range(PANEL_ROWS):
        rows[row] = weight + min(begin + row, end - 1) * weight_stride
    biases = np.zeros(PANEL_ROWS, dtype=np.float32)
    if bias != 0:
        _copy_columns(bias + begin * 4, 0, 1, count, biases.ctypes.data, 0)
    edge = np.zeros((_WIDEST, PANEL_ROWS), dtype=np.float32)
    chunk = _SHORT_CHUNK if n <= _SHORT_CHUNK_ROWS else CHUNK
    panel = np.empty(min(n_in, chunk) // BLOCK * GROUPS * group_bytes + _LINE, dtype=np.uint8)
    # Addresses are taken inside the loop: an array is freed once nothing but its address is used.
    for first in range(0, n_in, chunk):
        n_values = min(chunk, n_in - first)
        ahead = weight + end * weight_stride + weight_stride * PANEL_ROWS * first // n_in
        weights = panel.ctypes.data + -panel.ctypes.data % _LINE
        _unpack_panel(layout, rows.ctypes.data, first, n_values, weights, ahead)
        for member in range(0, n, _WIDEST):
            width, n_blocks = _tile_width(member, n), n_values // BLOCK
            x = quantised + (member * (n_in // BLOCK) + first // BLOCK * width) * token_bytes
            place = (out + member * out_stride + begin * 4, out_stride)
            start = place if first > 0 else (biases.ctypes.data, 0)
            if count == PANEL_ROWS and member + width <= n:
                _multiply_tile(layout, width, weights, x, n_blocks, start, place)
            else:
                n_rows, by_rows = min(width, n - member), (edge.ctypes.data, PANEL_ROWS * 4)
                _copy_columns(start[0], start[1], n_rows, count, by_rows[0], by_rows[1])
                _multiply_tile(layout, width, weights, x, n_blocks, by_rows, by_rows)
                _copy_columns(by_rows[0], by_rows[1], n_rows, count, place[0], place[1])


def _multiply_one(layout: Any, matrix: Matrix, out: int, quantised: int, begin: int, end: int) -> None:
    """Weight rows ``begin..end`` times a single row of x."""
    raise NotImplementedError


@typed(overload(_multiply_one))
def _choose_order(layout: Any, matrix: Any, out: Any, quantised: Any, begin: Any, end: Any) -> Any:
    multiply = _multiply_in_order if layout.layout.in_order else _multiply_by_sixteen

    def apply(layout: Any, matrix: Any, out: Any, quantised: Any, begin: Any, end: Any) -> Any:
        multiply(layout, matrix, out, quantised, begin, end)

    return apply


@inlined
def _multiply_by_sixteen(layout: Any, matrix: Matrix, out: int, quantised: int, begin: int, end: int) -> None:
    """Weight rows ``begin..end`` times a single row of x, sixteen side by side."""
    weight, weight_stride, _, n_in, bias = matrix
    x_bytes = layout.block_values // BLOCK * layout.panel_numbers[1]
    rows = np.empty(LANES, dtype=np.int64)
    for first in range(begin, end, LANES):
        for row in range(LANES):
            rows[row] = weight + min(first + row, end - 1) * weight_stride
        ahead = weight + (first + LANES) * weight_stride
        sums = load_values(F32, bias, 0, first, end) if bias != 0 else splat(_ZERO)
        for block in range(n_in // layout.block_values):
            offset = block * layout.block_bytes
            sums = layout.multiply_block(
                rows.ctypes.data, offset, quantised + block * x_bytes, ahead + block * LANES * layout.block_bytes, sums
            )
        store_values(F32, out, first, end, sums)


@inlined
def _multiply_in_order(layout: Any, matrix: Matrix, out: int, quantised: int, begin: int, end: int) -> None:
    """The same rows one after the other, as they lie in memory."""
    weight, weight_stride, _, n_in, bias = matrix
    n_blocks, n_whole = _padded_blocks(n_in), n_in // VALUES
    scales, whole_bytes = quantised + n_blocks * BLOCK, layout.row_bytes(n_whole * VALUES)
    products = np.empty((LANES, n_blocks), dtype=np.float32)
    last = np.zeros(layout.row_bytes(VALUES), dtype=np.uint8)  # what is left of a row, and weights of zero
    for first in range(begin, end, LANES):
        for row in range(min(LANES, end - first)):
            place, target = weight + (first + row) * weight_stride, products.ctypes.data + row * n_blocks * 4
            _dots(layout, place, quantised, n_blocks, 0, n_whole, target)
            if n_whole * VALUES < n_in:
                for byte in range(0, layout.row_bytes(n_in) - whole_bytes, 2):
                    copy_half(place + whole_bytes + byte, last.ctypes.data + byte)
                _dots(layout, last.ctypes.data, quantised, n_blocks, n_whole, 1, target)
        sums = load_values(F32, bias, 0, first, end) if bias != 0 else splat(_ZERO)
        for block in range(0, n_blocks, BLOCKS):
            sums = add_blocks(products.ctypes.data + block * 4, n_blocks * 4, scales + block * 4, sums)
        store_values(F32, out, first, end, sums)


@inlined
def _dots(layout: Any, row: int, quantised: int, n_blocks: int, group: int, n: int, out: int) -> None:
    """n groups of eight blocks from an address on times those of x from a group on. out: of the row's first."""
    offset = group * BLOCKS * 4
    starts = quantised + n_blocks * (BLOCK + 4) + offset
    layout.dots(row, quantised + group * VALUES, starts, starts + n_blocks * 4, n, out + offset)


@inlined
def multiply_rows(layout: Any, matrix: Matrix, activations: Activations, quantised: int, begin: int, end: int) -> None:
    """Weight rows ``begin..end`` times all rows of x. quantised: the address of these."""
    if activations[2] == 1:
        _multiply_one(layout, matrix, activations[3], quantised, begin, end)
        return
    for first in range(begin, end, PANEL_ROWS):
        _multiply_panel(layout, matrix, activations, quantised, first, min(first + PANEL_ROWS, end))


@kernel
def multiply(layout: Any, matrix: Matrix, activations: Activations) -> None:
    """``out = x @ weight.T + bias`` for any number of rows of x, float32; n_in is a multiple of 32."""
    n_out, n_in = matrix[2], matrix[3]
    x, x_stride, n_rows, out, out_stride = activations
    step = max(X_VALUES // n_in // _WIDEST, 1) * _WIDEST
    quantised = np.empty(quantised_bytes(layout, min(n_rows, step), n_in), dtype=np.uint8)
    for start in range(0, n_rows, step):
        n = min(step, n_rows - start)
        piece, n_padded = x + start * x_stride, padded_rows(n)
        if n_padded <= _FEW_ROWS:
            for row in range(n_padded):
                quantise_row(layout, (piece, x_stride, n, n_in), row, quantised.ctypes.data)
        else:
            for row in prange(n_padded):
                quantise_row(layout, (piece, x_stride, n, n_in), row, quantised.ctypes.data)
        rows = (piece, x_stride, n, out + start * out_stride, out_stride)
        job_rows = PANEL_ROWS if n > 1 else _JOB_ROWS
        for job in prange((n_out + job_rows - 1) // job_rows):
            begin = job * job_rows
            multiply_rows(layout, matrix, rows, quantised.ctypes.data, begin, min(begin + job_rows, n_out))
