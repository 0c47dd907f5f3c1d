"""A model in small, and batches that take every path through its layers: after them all its kernels are compiled.

    python -m elastikv.runtimes.rehearsal 5 < model_in_small

compiles what such a model needs, and says how many seconds it took; it ends early if the other end of the pipe with the
descriptor 5 is closed.
"""

from __future__ import annotations

import functools
import io
import math
import os
import pickle
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import IO, Any

import numpy as np
import torch

from elastikv.batch import Batch, SeqTokens
from elastikv.kernels.base import Kernels
from elastikv.memory import Budget, CellType, MemoryOptions
from elastikv.models.decoder import BlockWeights, Decoder, DecoderWeights
from elastikv.runtimes.base import RuntimeOptions
from elastikv.runtimes.torch_runtime import TorchRuntime, open_runtime
from elastikv.weights.tokenizer import Tokenizer

_MANY = 40
"""Rows of x that no compiled layer takes in one call."""

DECODE = Batch([SeqTokens(0, [0])])
"""What most steps are."""

ALL_PATHS = (
    DECODE,
    Batch([SeqTokens(0, [0] * 3)]),
    Batch([SeqTokens(0, [0] * _MANY)]),
    Batch([SeqTokens(seq_id, [0]) for seq_id in range(_MANY)]),
)
"""One row, a few, many of one sequence, and many of as many sequences."""


def in_small(weights: DecoderWeights) -> DecoderWeights:
    """The model with one layer of each kind. Layers that differ in nothing but values are of one kind."""
    kinds: dict[bytes, BlockWeights] = {}
    for block in weights.blocks:
        kinds.setdefault(dumps(block), block)
    return replace(weights, blocks=tuple(kinds.values()))


def rehearse(
    weights: DecoderWeights, kernels: Kernels, cells: tuple[CellType, CellType], batches: Iterable[Batch]
) -> None:
    """Decode batches with a model of its own memory. cells: types of K and V."""
    memory = MemoryOptions(4 * _MANY, initial=2, k_type=cells[0], v_type=cells[1])
    options = RuntimeOptions(memory=memory, budget=Budget(), n_ubatch=_MANY)
    runtime: TorchRuntime = open_runtime(Decoder(weights, kernels), Tokenizer(None), options, torch.set_num_threads)
    try:
        for batch in batches:
            runtime.decode(batch)
    finally:
        runtime.close()


def dumps(value: Any) -> bytes:
    """Pickle a value without what its tensors hold."""
    file = io.BytesIO()
    _Pickler(file).dump(value)
    return file.getvalue()


def load(file: IO[bytes]) -> Any:
    """Read what ``dumps`` gave: all tensors hold zeros."""
    return _Unpickler(file).load()


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return (tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else None


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, pid: Any) -> torch.Tensor:
        return _zeros(*pid)


@functools.cache
def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """To be read only; for any size it costs hardly any memory, as numpy's zeros are not written anywhere."""
    zeros = torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8))
    return zeros.view(dtype).view(shape)


def end_with(pipe: int) -> None:
    """Wait until nobody has the other end any more, and end this process."""
    os.read(pipe, 1)
    os._exit(1)


def main() -> None:
    """Compile what the model on standard input needs."""
    threading.Thread(target=end_with, args=(int(sys.argv[1]),), daemon=True).start()
    from elastikv.kernels.cpu import CpuKernels, set_threads

    set_threads(1)
    started = time.monotonic()
    weights, cells, attention_precision = load(sys.stdin.buffer)
    rehearse(weights, CpuKernels(attention_precision), cells, ALL_PATHS)
    print(time.monotonic() - started)


if __name__ == "__main__":
    main()
