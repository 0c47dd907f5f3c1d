"""What the tests of the cpu kernels share: weights of every format, ubatches over real memory, and poison."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch

from elastikv.batch import Span, UBatch
from elastikv.kernels import quants
from elastikv.kernels.cpu import CpuKernels
from elastikv.kernels.weights import PackedTensor, Weight
from elastikv.memory import Budget, KVCache, KVLayer, MemoryOptions
from elastikv.memory.base import CellType
from tools.gguf_files import K_QUANTS, random_blocks

FORMATS = ["f32", "f16", "bf16", "q8_0", "q4_0", *K_QUANTS]
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def few_of(kinds: Iterable[str], *kept: str) -> list[Any]:
    """For ``pytest.mark.parametrize``: those not ``kept`` are slow. A machine compiles each once, for 3 to 15 s."""
    return [kind if kind in kept else pytest.param(kind, marks=pytest.mark.slow) for kind in kinds]


def make_weight(kind: str, n_out: int, n_in: int) -> tuple[Weight, torch.Tensor]:
    """A weight, and the values it stands for in float64."""
    values = torch.randn(n_out, n_in) / n_in**0.5
    if kind in DTYPES:
        dense = values.to(DTYPES[kind])
        return dense, dense.double()
    if kind in K_QUANTS:
        packed = torch.from_numpy(random_blocks(kind, n_out, n_in, seed=int(torch.randint(1 << 30, ()))))
    else:
        packed = quants.pack(values, kind)
    return PackedTensor(kind, (n_out, n_in), packed), quants.unpack(packed, kind).double()


@functools.cache
def cpu() -> CpuKernels:
    return CpuKernels()


@functools.cache
def exact() -> CpuKernels:
    """All of attention in float32."""
    return CpuKernels("f32")


def poisoned(*shape: int) -> torch.Tensor:
    """An output that shows every value that was not written."""
    return torch.full(shape, torch.nan)


def ubatch_of(lengths: dict[int, tuple[int, int]]) -> UBatch:
    """One span per sequence: ``{seq_id: (tokens held before, tokens in the span)}``."""
    spans, positions, start = [], [], 0
    for seq_id, (before, n_new) in lengths.items():
        spans.append(Span(seq_id, start, start + n_new, before))
        positions.append(np.arange(before, before + n_new, dtype=np.int64))
        start += n_new
    token_ids = np.zeros(start, dtype=np.int64)
    return UBatch(token_ids, np.concatenate(positions), tuple(spans), np.arange(0, dtype=np.int64))


def filled_cache(
    layer: KVLayer, lengths: dict[int, int], k_type: CellType = "f16", v_type: CellType | None = None
) -> KVCache:
    """A cache of one layer whose streams hold random cells; every cell behind them is NaN."""
    options = MemoryOptions(n_ctx=1 << 14, k_type=k_type, v_type=v_type or k_type, storage="copy")
    cache = KVCache([layer], options, Budget.parse("none"))
    for seq_id, n_cells in lengths.items():
        cache.resize(n_cells + 5, seq_id)
        cells = cache.cells(0, seq_id)
        for part in (cells.k, cells.v):
            part.store(slice(0, n_cells), torch.randn(n_cells, part.n_heads, part.dim))
            for plane in part.planes:
                plane[n_cells:] = torch.nan if plane.is_floating_point() else 127
    return cache


def exact_attention(q: torch.Tensor, cache: KVCache, ubatch: UBatch, scale: float) -> torch.Tensor:
    """The definition, in float64: one query, one head at a time over the cells it sees."""
    window = cache.layers[0].window
    n_heads, out = q.shape[1], []
    for span in ubatch.spans:
        cells = cache.cells(0, span.seq_id)
        keys, values = (part.load(slice(0, span.end)).double() for part in (cells.k, cells.v))
        n_group = n_heads // keys.shape[1]
        for token in range(span.n_tokens):
            end = span.pos + token + 1
            seen = slice(max(end - window, 0) if window else 0, end)
            query = q[span.start + token].double().unflatten(0, (-1, n_group))
            weights = torch.einsum("hgd,chd->hgc", query, keys[seen]).mul(scale).softmax(-1)
            out.append(torch.einsum("hgc,chd->hgd", weights, values[seen]).flatten(0, 1))
    return torch.stack(out)
