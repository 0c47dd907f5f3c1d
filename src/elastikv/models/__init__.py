"""Models by architecture: what is served, what memory it needs, and how it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from elastikv.errors import UnsupportedModel
from elastikv.models.checkpoint import existing, open_checkpoint, read_own_config
from elastikv.models.config import ModelConfig

if TYPE_CHECKING:
    from elastikv.kernels.base import Kernels
    from elastikv.memory.base import LayerMemory
    from elastikv.models.base import Model
    from elastikv.models.fallback import FallbackConfig
    from elastikv.weights.loader import Progress
    from elastikv.weights.tokenizer import Tokenizer

__all__ = ["LoadedModel", "load_model", "memory_layers", "read_config"]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to compute, with what came with its weights."""

    model: Model
    tokenizer: Tokenizer
    config: ModelConfig | FallbackConfig


def load_model(
    path: str | Path,
    *,
    dtype: str = "auto",
    quantize: str | None = None,
    kernels: Kernels,
    progress: Progress | None = None,
) -> LoadedModel:
    """Load a Hugging Face folder or a GGUF file.

    A folder of an architecture without a file here runs through transformers' modules, if these know it.
    dtype, quantize: see ``WeightLoader``. progress is called with bytes read and bytes in all.
    Raises ModelError (no such file, no weights), UnsupportedModel, CorruptFile or InvalidRequest.
    """
    from elastikv.models.build import build_decoder
    from elastikv.weights.loader import WeightLoader

    try:
        checkpoint = open_checkpoint(path)
    except UnsupportedModel as refusal:
        from elastikv.models import fallback

        folder = existing(path)
        config = fallback.read_config(folder, refusal)
        model, tokenizer = fallback.load(folder, config, dtype, quantize)
        return LoadedModel(model, tokenizer, config)
    own, tensors = checkpoint.config, checkpoint.tensors
    try:
        loader = WeightLoader(tensors, str(own), dtype=dtype, quantize=quantize, progress=progress)
        tokenizer = tensors.tokenizer(own.eos_token_ids)
        return LoadedModel(build_decoder(checkpoint.architecture, own, loader, kernels), tokenizer, own)
    finally:
        tensors.close()


def read_config(path: str | Path) -> ModelConfig | FallbackConfig:
    """The config alone, from a folder, a GGUF file or a ``config.json``; no weights are read or needed."""
    try:
        return read_own_config(path)
    except UnsupportedModel as refusal:
        from elastikv.models import fallback

        return fallback.read_config(existing(path), refusal)


def memory_layers(config: ModelConfig | FallbackConfig) -> Sequence[LayerMemory]:
    """What each layer of such a model asks of memory, in layer order."""
    if isinstance(config, ModelConfig):
        from elastikv.models.registry import by_name

        return by_name(config.architecture).memory_layers(config)
    from elastikv.models import fallback

    return fallback.memory_layers(config)
