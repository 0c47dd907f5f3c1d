"""Models by architecture: what is served, what memory it needs, and how it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from elastikv.models.checkpoint import open_checkpoint, read_config
from elastikv.models.config import ModelConfig

if TYPE_CHECKING:
    from elastikv.kernels.base import Kernels
    from elastikv.memory.base import LayerMemory
    from elastikv.models.decoder import Decoder
    from elastikv.weights.loader import Progress
    from elastikv.weights.tokenizer import Tokenizer

__all__ = ["LoadedModel", "load_model", "memory_layers", "read_config"]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to compute, with what came with its weights."""

    model: Decoder
    tokenizer: Tokenizer
    config: ModelConfig


def load_model(
    path: str | Path,
    *,
    dtype: str = "auto",
    quantize: str | None = None,
    kernels: Kernels,
    progress: Progress | None = None,
) -> LoadedModel:
    """Load a Hugging Face folder or a GGUF file.

    ``LLM`` also runs architectures without a file here, see ``runtimes``.
    dtype, quantize: see ``WeightLoader``. progress is called with bytes read and bytes in all.
    Raises ModelError (no such file, no weights), UnsupportedModel, CorruptFile or InvalidRequest.
    """
    from elastikv.models.build import read_weights
    from elastikv.models.decoder import Decoder
    from elastikv.weights.loader import WeightLoader

    checkpoint = open_checkpoint(path)
    own, tensors = checkpoint.config, checkpoint.tensors
    try:
        loader = WeightLoader(
            tensors, str(own), dtype=dtype, quantize=quantize, device=kernels.device, progress=progress
        )
        tokenizer = tensors.tokenizer(own.eos_token_ids)
        weights = read_weights(checkpoint.architecture, own, loader)
        return LoadedModel(Decoder(weights, kernels), tokenizer, own)
    finally:
        tensors.close()


def memory_layers(config: ModelConfig) -> Sequence[LayerMemory]:
    """What each layer of such a model asks of memory, in layer order."""
    from elastikv.models.registry import by_name

    return by_name(config.architecture).memory_layers(config)
