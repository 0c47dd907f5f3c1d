"""Run a model over a memory as the engine does, with buffers of exactly the declared size, poisoned before each use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from elastikv.batch import Batch, SeqTokens
from elastikv.memory import Budget, MemoryOptions, make_memory
from elastikv.memory.base import Memory
from elastikv.models.base import Model


class PoisonedBuffers:
    """NaN where nothing was written; a view larger than was declared fails."""

    def __init__(self, model: Model, n_ubatch: int) -> None:
        self._buffers = {name: torch.empty(n, dtype=torch.uint8) for name, n in model.buffer_bytes(n_ubatch).items()}

    def view(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        n_bytes = math.prod(shape) * dtype.itemsize
        assert n_bytes <= self._buffers[name].numel(), f"{name} was declared smaller"
        return self._buffers[name][:n_bytes].view(dtype).view(shape).fill_(math.nan)


class NewBuffers:
    """Every view is a tensor of its own."""

    def view(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.full(shape, math.nan, dtype=dtype)


def open_memory(model: Model, **options: Any) -> Memory:
    """Float32 cells and no budget, unless said otherwise."""
    defaults: dict[str, Any] = {"n_ctx": 1024, "k_type": "f32", "v_type": "f32"}
    return make_memory(model.memory_layers, MemoryOptions(**{**defaults, **options}), Budget.parse("none"))


def decode(
    model: Model, memory: Memory, tokens: dict[int, Sequence[int]], n_ubatch: int = 64
) -> dict[int, torch.Tensor]:
    """Append tokens to sequences in one call; returns logits of all of them, ``[n_tokens, n_vocab]`` by sequence."""
    batch = Batch(SeqTokens(seq_id, list(ids), len(ids)) for seq_id, ids in tokens.items())
    buffers = PoisonedBuffers(model, n_ubatch)
    logits = []
    for ubatch in memory.init_batch(batch, n_ubatch):
        memory.apply(ubatch)
        logits.append(model.forward(ubatch, memory, buffers))
    memory.commit()
    parts = torch.cat(logits).split([len(ids) for ids in tokens.values()])
    return dict(zip(tokens, parts, strict=True))


def random_ids(n_tokens: int, n_vocab: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, n_vocab, (n_tokens,), generator=generator).tolist()
