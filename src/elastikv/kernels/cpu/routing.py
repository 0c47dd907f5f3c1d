"""Which experts a token goes to: softmax over all of them, the largest few, and tokens grouped by expert."""

from __future__ import annotations

import numpy as np
from numba import prange

from elastikv.kernels.cpu.jit import inlined, kernel
from elastikv.kernels.cpu.norms import MIN_PARALLEL

_ZERO = np.float32(0)
_ONE = np.float32(1)


@inlined
def _softmax(logits: np.ndarray) -> np.ndarray:
    exps = np.exp(logits - logits.max())
    total = _ZERO
    for value in exps:
        total += value
    probabilities: np.ndarray = exps / total
    return probabilities


@inlined
def _choose(probabilities: np.ndarray, weights: np.ndarray, experts: np.ndarray) -> None:
    """The largest, in the order of experts; of equal ones those with the lower numbers."""
    chosen = np.zeros(len(probabilities), dtype=np.bool_)
    for _ in range(len(experts)):
        best = -1
        for expert in range(len(probabilities)):
            if not chosen[expert] and (best < 0 or probabilities[expert] > probabilities[best]):
                best = expert
        chosen[best] = True
    slot = 0
    for expert in range(len(probabilities)):
        if chosen[expert]:
            weights[slot], experts[slot] = probabilities[expert], expert
            slot += 1


@inlined
def _route_row(logits: np.ndarray, n_experts: int, normalised: bool, weights: np.ndarray, experts: np.ndarray) -> None:
    n_used = len(experts)
    _choose(_softmax(logits[:n_experts]), weights[:n_used], experts)
    if normalised:
        total = _ZERO
        for slot in range(n_used):
            total += weights[slot]
        for slot in range(n_used):
            weights[slot] /= total
    if len(logits) > n_experts:
        weights[n_used] = _ONE / (_ONE + np.exp(-logits[n_experts]))


@kernel
def route(logits: np.ndarray, n_experts: int, normalised: bool, weights: np.ndarray, experts: np.ndarray) -> None:
    """See ``Kernels.route``."""
    n = len(logits)
    if logits.size < MIN_PARALLEL:
        for row in range(n):
            _route_row(logits[row], n_experts, normalised, weights[row], experts[row])
    else:
        for row in prange(n):
            _route_row(logits[row], n_experts, normalised, weights[row], experts[row])


@inlined
def by_expert(experts: np.ndarray, n_experts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of a token and an expert in the order of experts, within an expert in that of tokens.

    experts: int64 ``[n, n_used]``. Gives where each expert's pairs begin, ``[n_experts + 1]``; the token of each pair;
    and the pair of each (token, slot), ``[n, n_used]``.
    """
    n, n_used = experts.shape
    first = np.zeros(n_experts + 1, dtype=np.int64)
    for row in range(n):
        for slot in range(n_used):
            first[experts[row, slot] + 1] += 1
    for expert in range(n_experts):
        first[expert + 1] += first[expert]
    taken = first[:-1].copy()
    tokens = np.empty(n * n_used, dtype=np.int64)
    pairs = np.empty((n, n_used), dtype=np.int64)
    for row in range(n):
        for slot in range(n_used):
            expert = experts[row, slot]
            tokens[taken[expert]] = row
            pairs[row, slot] = taken[expert]
            taken[expert] += 1
    return first, tokens, pairs
