"""Grouped skinny GEMM: several weight matrices of one shape and format, each with a few rows of x of its own.

What a layer of experts needs of a few tokens. All of it is one parallel loop, in which each thread takes the same share
of every matrix's rows: matrices with one row of x and with many keep all threads equally busy.

groups: int64 ``[n_groups, 4]``, each (address of the matrix, address of x, rows of x, address of out).
shape: (bytes between weight rows, n_out, n_in, bytes between rows of x, bytes between rows of out), common to all.
n_threads: into how many shares rows are cut (numba cannot keep a function on disk that asks for it).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numba.extending import overload

from elastikv.kernels.cpu.formats.layout import layout_of
from elastikv.kernels.cpu.jit import inlined, kernel, typed
from elastikv.kernels.cpu.matmul import gemm_int8, skinny_bf16, skinny_f32

Shape = tuple[int, int, int, int, int]


@inlined
def _operands(groups: np.ndarray, index: int, shape: Shape) -> tuple[Any, Any]:
    """A group as a ``Matrix`` and ``Activations``."""
    weight, x, n, out = groups[index]
    weight_stride, n_out, n_in, x_stride, out_stride = shape
    return (weight, weight_stride, n_out, n_in, 0), (x, x_stride, n, out, out_stride)


@inlined
def _first_rows(groups: np.ndarray) -> tuple[np.ndarray, int]:
    """Where each group's rows of x start when all are laid out one after the other, and how many rows these are.

    Groups that begin with the row that the one before begins with share it: all do where a single token is computed.
    """
    first = np.empty(len(groups), dtype=np.int64)
    total = 0
    for index in range(len(groups)):
        if index > 0 and groups[index, 1] == groups[index - 1, 1]:
            first[index] = first[index - 1]
        else:
            first[index] = total
        total = max(total, first[index] + groups[index, 2])
    return first, total


@kernel
def _multiply_f32(layout: Any, groups: np.ndarray, shape: Shape, n_threads: int) -> None:
    n_out = shape[1]
    for share in prange(n_threads):
        begin, end = n_out * share // n_threads, n_out * (share + 1) // n_threads
        for index in range(len(groups)):
            matrix, activations = _operands(groups, index, shape)
            if activations[2] == 1:
                skinny_f32.multiply_one(layout, matrix, activations, begin, end)
            else:
                skinny_f32.multiply_several(layout, matrix, activations, begin, end)


@kernel
def _multiply_bf16(layout: Any, groups: np.ndarray, shape: Shape, n_threads: int) -> None:
    """x is rounded to bfloat16; n_in is a multiple of 32."""
    _, n_out, n_in, x_stride, _ = shape
    first, total = _first_rows(groups)
    rounded = np.empty((total, n_in), dtype=np.uint16)
    for index in range(len(groups)):
        x, n = groups[index, 1], groups[index, 2]
        skinny_bf16.round_rows((x, x_stride, n, 0, 0), rounded[first[index] : first[index] + n])
    for share in prange(n_threads):
        begin, end = n_out * share // n_threads, n_out * (share + 1) // n_threads
        for index in range(len(groups)):
            matrix, (_, _, n, out, out_stride) = _operands(groups, index, shape)
            x = rounded.ctypes.data + first[index] * n_in * 2
            skinny_bf16.multiply_several(layout, matrix, (x, 0, n, out, out_stride), begin, end)


@kernel
def _multiply_int8(layout: Any, groups: np.ndarray, shape: Shape, n_threads: int) -> None:
    """Any number of rows each, quantised to 8 bits; n_in is a multiple of 32."""
    _, n_out, n_in, x_stride, _ = shape
    place = np.empty(len(groups), dtype=np.int64)
    total = 0
    for index in range(len(groups)):
        shared = index > 0 and groups[index, 1] == groups[index - 1, 1] and groups[index, 2] == groups[index - 1, 2]
        place[index] = place[index - 1] if shared else total
        if not shared:
            total += gemm_int8.quantised_bytes(layout, groups[index, 2], n_in)
    quantised = np.empty(total, dtype=np.uint8)
    for index in range(len(groups)):
        if index == 0 or place[index] != place[index - 1]:
            x, n = groups[index, 1], groups[index, 2]
            for row in range(gemm_int8.padded_rows(n)):
                gemm_int8.quantise_row(layout, (x, x_stride, n, n_in), row, quantised.ctypes.data + place[index])
    for share in prange(n_threads):
        begin, end = n_out * share // n_threads, n_out * (share + 1) // n_threads
        for index in range(len(groups)):
            matrix, activations = _operands(groups, index, shape)
            gemm_int8.multiply_rows(layout, matrix, activations, quantised.ctypes.data + place[index], begin, end)


_ONE = {"f32": _multiply_f32, "int8": _multiply_int8}
_SEVERAL = {"f32": _multiply_f32, "bf16": _multiply_bf16, "int8": _multiply_int8}
"""Kernels by the type that x is converted to, see ``skinny.XType``."""


def multiply(product: Any, groups: np.ndarray, n_single: int, shape: Shape, n_threads: int) -> None:
    """``out = x @ weight.T`` for every group, for compiled callers. The first n_single groups have one row of x."""
    raise NotImplementedError


@typed(overload(multiply))
def _choose(product: Any, groups: Any, n_single: Any, shape: Any, n_threads: Any) -> Any:
    layout = layout_of(product.weight)
    multiply_one, multiply_several = _ONE[product.one], _SEVERAL[product.several]

    def apply(product: Any, groups: Any, n_single: Any, shape: Any, n_threads: Any) -> Any:
        if n_single > 0:
            multiply_one(layout, groups[:n_single], shape, n_threads)
        if n_single < len(groups):
            multiply_several(layout, groups[n_single:], shape, n_threads)

    return apply
