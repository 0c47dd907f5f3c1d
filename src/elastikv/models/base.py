"""What a runtime needs to know of a model that torch computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from elastikv.batch import UBatch
from elastikv.kernels.base import Buffers
from elastikv.memory.base import LayerMemory, Memory
from elastikv.memory.options import RotateK

Output = Literal["logits", "hidden"]
"""What is wanted of a token: what comes next, or what the head gets to tell it from."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Facts of a loaded model that are not tensors."""

    architecture: str
    name: str
    n_layers: int
    n_vocab: int
    n_ctx_train: int
    eos_token_ids: tuple[int, ...]
    weight_bytes: int
    fingerprint: str
    """Identifies weights and layout in saved sessions."""


class Model(Protocol):
    """A model as ``TorchRuntime`` runs it: facts, the memory that it needs, and the forward pass."""

    info: ModelInfo

    @property
    def device(self) -> torch.device:
        """Where it computes, and so where its memory and its buffers are."""
        ...

    @property
    def memory_layers(self) -> Sequence[LayerMemory]:
        """What each layer asks of memory, in layer order."""
        ...

    @property
    def rotate_k(self) -> RotateK | None:
        """Rotates K to new positions for a context shift; None if this model's sequences cannot be shifted."""
        ...

    def buffer_bytes(self, n_ubatch: int) -> dict[str, int]:
        """Compute buffers that ``forward`` views by name, in bytes, for ubatches up to ``n_ubatch`` tokens."""
        ...

    def scratch_bytes(self, n_ubatch: int, max_capacity: int) -> int:
        """Bytes that ``forward`` allocates by itself at most, over streams of up to ``max_capacity`` cells."""
        ...

    def forward(self, ubatch: UBatch, memory: Memory, buffers: Buffers) -> torch.Tensor:
        """float32 logits ``[n_outputs, n_vocab]`` of the rows in ``ubatch.output_rows`` (may be 0 rows)."""
        ...

    def hidden(self, ubatch: UBatch, memory: Memory, buffers: Buffers) -> torch.Tensor:
        """float32 ``[n_outputs, n_hidden]`` after the last norm, of the same rows; good until the next ubatch.

        Raises InvalidRequest where a model does not tell.
        """
        ...
