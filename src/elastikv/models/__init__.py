"""Models by architecture: what is served, what memory it needs, and how it is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from elastikv.errors import ModelError, UnsupportedModel
from elastikv.weights.config import Architecture, ModelConfig
from elastikv.weights.hf_config import read_hf_config

if TYPE_CHECKING:
    from elastikv.kernels.base import Kernels
    from elastikv.memory.base import LayerMemory
    from elastikv.models.base import Model
    from elastikv.models.decoder import Decoder
    from elastikv.models.fallback import FallbackConfig
    from elastikv.weights.base import TensorSource
    from elastikv.weights.loader import Progress
    from elastikv.weights.tokenizer import Tokenizer

__all__ = ["LoadedModel", "load_model", "memory_layers", "read_config"]


@dataclass(frozen=True, slots=True)
class LoadedModel:
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
    from elastikv.weights.loader import WeightLoader

    try:
        source = open_source(path)
    except UnsupportedModel as refusal:
        from elastikv.models import fallback

        folder = _existing(path)
        config = fallback.read_config(folder, refusal)
        model, tokenizer = fallback.load(folder, config, dtype, quantize)
        return LoadedModel(model, tokenizer, config)
    try:
        loader = WeightLoader(source, dtype=dtype, quantize=quantize, progress=progress)
        tokenizer = source.tokenizer()
        _, build = _architecture(source.config.architecture)
        return LoadedModel(build(source.config, loader, kernels), tokenizer, source.config)
    finally:
        source.close()


def open_source(path: str | Path) -> TensorSource:
    """The weights at ``path``, none read yet."""
    found = _existing(path)
    if found.is_dir():
        from elastikv.weights.hf import HFFolder

        return HFFolder(found)
    if found.suffix == ".gguf":
        from elastikv.weights.gguf_file import GGUFFile

        return GGUFFile(found)
    raise ModelError(f"{found}: neither a Hugging Face folder nor a .gguf file")


def read_config(path: str | Path) -> ModelConfig | FallbackConfig:
    """The config alone, from a folder, a GGUF file or a ``config.json``; no weights are read or needed."""
    found = _existing(path)
    try:
        return _read_own_config(found)
    except UnsupportedModel as refusal:
        from elastikv.models import fallback

        return fallback.read_config(found, refusal)


def _read_own_config(found: Path) -> ModelConfig:
    if found.is_dir():
        if not (found / "config.json").is_file():
            raise ModelError(f"{found}: no config.json in this folder, so it is no Hugging Face model")
        return read_hf_config(found / "config.json")
    if found.suffix == ".json":
        return read_hf_config(found)
    source = open_source(found)
    source.close()
    return source.config


def memory_layers(config: ModelConfig | FallbackConfig) -> Sequence[LayerMemory]:
    """What each layer of such a model asks of memory, in layer order."""
    if not isinstance(config, ModelConfig):
        from elastikv.models import fallback

        return fallback.memory_layers(config)
    declare, _ = _architecture(config.architecture)
    return declare(config)


def _architecture(
    architecture: Architecture,
) -> tuple[Callable[[ModelConfig], Sequence[LayerMemory]], Callable[..., Decoder]]:
    if architecture == "qwen3_5":
        from elastikv.models import qwen3_5

        return qwen3_5.memory_layers, qwen3_5.build
    from elastikv.models import llama

    return llama.memory_layers, llama.build


def _existing(path: str | Path) -> Path:
    found = Path(path).expanduser()
    if not found.exists():
        raise ModelError(f"{path}: no such file or folder")
    return found
