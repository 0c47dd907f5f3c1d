"""What runs a model, as those above know it: ``decode(batch) -> logits``, a Memory, a tokenizer, facts and costs.

A runtime is a module with a class that follows ``Source`` and has a line in ``runtimes.RUNTIMES``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from elastikv.batch import Batch
from elastikv.kernels.base import AttentionPrecision
from elastikv.memory import Budget, Cost, MemoryOptions
from elastikv.memory.base import Memory
from elastikv.models.base import ModelInfo, Output
from elastikv.weights.tokenizer import Tokenizer

T = TypeVar("T")


class MakeRoomFor(Protocol):
    """Does what commits memory; after a CacheFull again, if others have made way."""

    def __call__(self, work: Callable[[], T]) -> T:
        """Returns what ``work`` returns, or raises its last CacheFull."""
        ...


def in_what_is_left(work: Callable[[], T]) -> T:
    """Nobody makes way."""
    return work()


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeOptions:
    """What a runtime is asked for. ``rotate`` and ``device`` of ``memory`` are the runtime's to set.

    n_ubatch: tokens computed at once. device, dtype, quantize, kernels, attention_precision, n_gpu_layers: see
    ``LLM``. n_threads: None leaves torch's setting.
    progress: called while loading with bytes read and bytes in all.
    make_room_for: does what commits memory while loading.
    """

    memory: MemoryOptions
    budget: Budget
    n_ubatch: int
    device: str = "cpu"
    dtype: str = "auto"
    quantize: str | None = None
    kernels: str = "auto"
    attention_precision: AttentionPrecision = "auto"
    n_gpu_layers: int = 0
    n_threads: int | None = None
    progress: Callable[[int, int], None] | None = None
    make_room_for: MakeRoomFor = in_what_is_left


class Described(Protocol):
    """A loaded model as far as those above a runtime know it."""

    info: ModelInfo


class Runtime(Protocol):
    """A loaded model and the memory of its sequences. Not for several threads at once."""

    @property
    def model(self) -> Described:
        """Of what kind it is beyond ``info`` is the runtime's own business."""
        ...

    @property
    def memory(self) -> Memory:
        """Of all sequences."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """From text to token ids and back."""
        ...

    @property
    def cost(self) -> Cost:
        """What a sequence commits, by its length."""
        ...

    @property
    def n_ubatch(self) -> int:
        """Tokens computed at once."""
        ...

    def decode(self, batch: Batch, output: Output = "logits") -> torch.Tensor:
        """Append the batch's tokens and compute them; float32 logits ``[n_outputs, n_vocab]`` on the host.

        output: ``"hidden"`` for ``[n_outputs, n_hidden]`` after the last norm instead; InvalidRequest where the model
        does not tell. Rows are in the order of ``batch.entries``. Whatever is raised, CacheFull and KeyboardInterrupt
        included, memory holds what it held before; or, if an interrupt came after all was computed, all of the batch.
        """
        ...

    def warm_up(self) -> None:
        """Wait until what is compiled in the background serves; what is not compiled then, is when it is needed.

        For what measures: steps before it may be far slower than those after it.
        """
        ...

    def set_threads(self, n_threads: int) -> None:
        """Let the calling thread compute on so many cores from now on. Raises InvalidRequest."""
        ...

    def close(self) -> None:
        """Give all memory back; of no use after that."""
        ...


class Config(Protocol):
    """What is known of a model before its weights are read."""

    @property
    def name(self) -> str:
        """Of the folder or the file."""
        ...

    @property
    def architecture(self) -> str:
        """The model type."""
        ...

    @property
    def n_ctx_train(self) -> int:
        """Tokens that a sequence had at most when the model was trained."""
        ...


class Source(Protocol):
    """A model on disk that a runtime can run; none of its weights are read yet."""

    @property
    def config(self) -> Config:
        """Its facts."""
        ...

    def __init__(self, path: Path) -> None:
        """Raises UnsupportedModel where the runtime cannot run it; ModelError, CorruptFile where nobody could."""
        ...

    def cost(self, options: MemoryOptions) -> Cost:
        """What sequences would commit, from the configuration alone. Raises UnsupportedModel, InvalidRequest."""
        ...

    def load(self, options: RuntimeOptions) -> Runtime:
        """Read the weights and open the memory. Raises ModelError, InvalidRequest, CacheFull."""
        ...
