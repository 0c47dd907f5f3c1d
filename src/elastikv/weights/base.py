"""What a weight file offers to the models, whatever its format.

Tensors are named and laid out as in a Hugging Face checkpoint of the text model
(``model.layers.0.self_attn.q_proj.weight``, ``[n_out, n_in]``), with the values such a checkpoint would hold.
A source that stores them differently (GGUF permutes, renames, folds ``1 +`` into norms) undoes that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch

from elastikv.kernels.weights import PackedTensor, Weight
from elastikv.weights.config import DeltaNetConfig, ModelConfig, RopeConfig
from elastikv.weights.tokenizer import Tokenizer

__all__ = ["DeltaNetConfig", "ModelConfig", "PackedTensor", "RopeConfig", "TensorSource", "Weight"]


class TensorSource(Protocol):
    """Tensors that are read one by one, when asked for; nothing is kept after it was handed out."""

    config: ModelConfig

    def names(self) -> Iterable[str]:
        """Every tensor of the text model."""
        ...

    def __contains__(self, name: str) -> bool: ...

    def nbytes(self, name: str) -> int:
        """Bytes of the tensor in the file: what progress is counted in."""
        ...

    def get(self, name: str) -> torch.Tensor:
        """The tensor, dense: f32, f16 or bf16 as stored (f32 where the file packs it). May be read-only.

        Raises CorruptFile where the file lacks the tensor or its bytes.
        """
        ...

    def get_packed(self, name: str) -> PackedTensor | None:
        """The tensor as the file packs it, in memory of its own, or None where it is stored dense."""
        ...

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that came with the weights; one without a backend if none did. Raises ModelError."""
        ...

    def close(self) -> None: ...
