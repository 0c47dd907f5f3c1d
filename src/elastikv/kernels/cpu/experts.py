"""A layer of experts for a few tokens, in one compiled call: only the rows of the chosen experts are read.

Pairs of a token and one of its experts lie in the order of experts; where there is one token they share its x.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from elastikv.kernels.cpu import norms, routing
from elastikv.kernels.cpu.formats.layout import load_values, store_values
from elastikv.kernels.cpu.formats.plain import F32
from elastikv.kernels.cpu.jit import fused, inlined, kernel
from elastikv.kernels.cpu.layers import add_norm, linear, mixed_linear, norm_after
from elastikv.kernels.cpu.matmul import grouped, skinny_f32
from elastikv.kernels.cpu.simd.math import splat
from elastikv.kernels.cpu.simd.vector import LANES

MAX_TOKENS = 16
"""Tokens up to which the layer is one call, and each chosen expert's rows are read once for all of them."""


def scratch_floats(hidden: int, n_experts: int, n_used: int, width: int, shared_width: int) -> int:
    """float32 values of scratch that each token needs."""
    return n_used * (2 * hidden + 3 * width) + 3 * shared_width


@inlined
def _groups(first: np.ndarray) -> tuple[np.ndarray, int]:
    """Lines (expert, its first pair, how many) of the experts that have any, and how many of these have one.

    Those come before the others, as ``grouped.multiply`` wants them.
    """
    counts = first[1:] - first[:-1]
    groups = np.empty((len(counts), 3), dtype=np.int64)
    n_single, n_groups = (counts == 1).sum(), (counts > 0).sum()
    single, several = 0, n_single
    for expert in range(len(counts)):
        if counts[expert] == 1:
            groups[single, 0], groups[single, 1], groups[single, 2] = expert, first[expert], 1
            single += 1
        elif counts[expert] > 1:
            groups[several, 0], groups[several, 1], groups[several, 2] = expert, first[expert], counts[expert]
            several += 1
    return groups[:n_groups], n_single


@inlined
def _grouped_linear(
    product: Any,
    parts: np.ndarray,
    groups: np.ndarray,
    n_single: int,
    rows: tuple[int, int, int, int],
    n_threads: int,
) -> None:
    """Multiply each pair's row of x with its expert's matrix.

    rows: addresses of x and of out, each followed by the bytes between its rows. parts: int64 ``[n_parts, 4 +
    n_experts]``, each (bytes between rows, n_out, n_in, first column, address of each expert's).
    """
    x, x_stride, out, out_stride = rows
    lines = np.empty((len(groups), 4), dtype=np.int64)
    for part in parts:
        for index in range(len(groups)):
            expert, first, count = groups[index]
            lines[index, 0] = part[4 + expert]
            lines[index, 1] = x + first * x_stride
            lines[index, 2] = count
            lines[index, 3] = out + first * out_stride + part[3] * 4
        grouped.multiply(product, lines, n_single, (part[0], part[1], part[2], x_stride, out_stride), n_threads)


@kernel
def _gather(x: int, tokens: np.ndarray, width: int, out: int) -> None:
    """Copy the row of each pair's token to out ``[n_pairs, width]``."""
    for pair in prange(len(tokens)):
        for start in range(0, width, LANES):
            values = load_values(F32, x + tokens[pair] * width * 4, 0, start, width)
            store_values(F32, out + pair * width * 4, start, width, values)


@inlined
def _add_weighted(x: int, weight: np.float32, width: int, sums: int) -> None:
    for start in range(0, width, LANES):
        value = load_values(F32, x, 0, start, width) * splat(weight)
        store_values(F32, sums, start, width, load_values(F32, sums, 0, start, width) + value)


@inlined
def _weigh_row(y: int, pairs: np.ndarray, weights: np.ndarray, shared: int, width: int, out: int) -> None:
    """The weighted sum of a token's pairs, and of what its shared expert gave (address; 0: there is none)."""
    zero = splat(np.float32(0))
    for start in range(0, width, LANES):
        store_values(F32, out, start, width, zero)
    for slot in range(len(pairs)):
        _add_weighted(y + pairs[slot] * width * 4, weights[slot], width, out)
    if shared != 0:
        _add_weighted(shared, weights[len(pairs)], width, out)


@kernel
def _weigh(y: int, pairs: np.ndarray, weights: np.ndarray, shared: int, width: int, out: int) -> None:
    n = len(pairs)
    if n == 1:
        _weigh_row(y, pairs[0], weights[0], shared, width, out)
    else:
        for row in prange(n):
            place = shared + row * width * 4 if shared != 0 else 0
            _weigh_row(y, pairs[row], weights[row], place, width, out + row * width * 4)


@inlined
def _shared_expert(
    gate_up: Any, down: Any, down_parts: np.ndarray, x: int, n: int, hidden: int, width: int, scratch: int, out: int
) -> None:
    """An MLP that every token goes to. gate_up: see ``mixed_linear``."""
    inner = scratch + n * 2 * width * 4
    mixed_linear(gate_up, x, hidden, n, scratch, 2 * width)
    norms.silu_mul(scratch, 2 * width * 4, n, width, inner)
    linear(down, down_parts, inner, width, n, out, hidden)


@fused
def experts(
    router: int,
    normalised: bool,
    gate_up: Any,
    gate_up_parts: np.ndarray,
    other: Any,
    other_parts: np.ndarray,
    down: Any,
    down_parts: np.ndarray,
    shared_gate_up: Any,
    shared_gate_up_parts: np.ndarray,
    shared_other: Any,
    shared_other_parts: np.ndarray,
    shared_down: Any,
    shared_down_parts: np.ndarray,
    norm_weights: tuple[int, int],
    eps: float,
    shape: tuple[int, int, int, int, int, int],
    tensors: tuple[int, int, int, int],
    n_threads: int,
) -> None:
    """``composed.Experts`` for a few tokens.

    router: address of ``[n_experts, hidden]``, one row more if there is a shared expert; parts: see
    ``_grouped_linear``, of the shared expert as in ``layers.mlp``; norm_weights: addresses of the norms' before and
    after (0: none); shape: (n, hidden size, n_experts, experts per token, width of one, width of the shared one or
    0); tensors: addresses of delta, residual, normed and scratch. No tuple has a product or an array in it: to tell
    their types takes Python 0.3 ms a call.
    """
    n, hidden, n_experts, n_used, width, shared_width = shape
    delta, _, normed, scratch = tensors
    add_norm(tensors, norm_weights, n, hidden, eps)

    n_shared = 1 if shared_width > 0 else 0
    logits = np.empty((n, n_experts + n_shared), dtype=np.float32)
    weights = np.empty((n, n_used + n_shared), dtype=np.float32)
    chosen = np.empty((n, n_used), dtype=np.int64)
    columns = n_experts + n_shared
    matrix = (router, hidden * 4, columns, hidden, 0)
    skinny_f32.multiply(F32, matrix, (normed, hidden * 4, n, logits.ctypes.data, columns * 4))
    routing.route(logits, n_experts, normalised, weights, chosen)
    first, tokens, pairs = routing.by_expert(chosen, n_experts)
    groups, n_single = _groups(first)

    x, x_stride = scratch, hidden * 4
    wide = scratch + len(tokens) * hidden * 4
    inner = wide + len(tokens) * 2 * width * 4
    y = inner + len(tokens) * width * 4
    if n == 1:
        x, x_stride = normed, 0
    else:
        _gather(normed, tokens, hidden, x)
    rows = (x, x_stride, wide, 2 * width * 4)
    _grouped_linear(gate_up, gate_up_parts, groups, n_single, rows, n_threads)
    _grouped_linear(other, other_parts, groups, n_single, rows, n_threads)
    norms.silu_mul(wide, 2 * width * 4, len(tokens), width, inner)
    _grouped_linear(down, down_parts, groups, n_single, (inner, width * 4, y, hidden * 4), n_threads)

    shared_y = 0
    if shared_width > 0:
        shared_y = scratch  # what was gathered is not needed any more
        gate_up_matrices = (shared_gate_up, shared_gate_up_parts, shared_other, shared_other_parts)
        _shared_expert(
            gate_up_matrices,
            shared_down,
            shared_down_parts,
            normed,
            n,
            hidden,
            shared_width,
            y + len(tokens) * hidden * 4,
            shared_y,
        )
    _weigh(y, pairs, weights, shared_y, hidden, delta)
    norm_after(tensors, norm_weights, n, hidden, eps)
