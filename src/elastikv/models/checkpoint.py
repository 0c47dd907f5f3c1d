"""From a path to an architecture, its config and its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from elastikv.errors import ModelError
from elastikv.models import registry
from elastikv.models.architecture import Architecture
from elastikv.models.config import ModelConfig
from elastikv.weights.base import TensorSource
from elastikv.weights.gguf import GGUFFile, PlacedTensors
from elastikv.weights.hf import HFFolder, read_hf_config


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk; none of its tensors are read yet."""

    architecture: Architecture
    config: ModelConfig
    tensors: TensorSource


def open_checkpoint(path: str | Path) -> Checkpoint:
    """A Hugging Face folder or a GGUF file. Raises ModelError, UnsupportedModel or CorruptFile."""
    found = existing(path)
    if found.is_dir():
        architecture, config = _read_hf(found / "config.json")
        return Checkpoint(architecture, config, HFFolder(found))
    file = _open_gguf(found)
    architecture, config = _read_gguf(file)
    return Checkpoint(architecture, config, PlacedTensors(file, architecture.places(config)))


def read_config(path: str | Path) -> ModelConfig:
    """The config alone, also of a ``config.json``; no weights are needed. Raises as ``open_checkpoint`` does."""
    found = existing(path)
    if found.is_dir():
        return _read_hf(found / "config.json")[1]
    return (_read_hf(found) if found.suffix == ".json" else _read_gguf(_open_gguf(found)))[1]


def existing(path: str | Path) -> Path:
    """Raises ModelError where there is nothing."""
    found = Path(path).expanduser()
    if not found.exists():
        raise ModelError(f"{path}: no such file or folder")
    return found


def _read_hf(path: Path) -> tuple[Architecture, ModelConfig]:
    if not path.is_file():
        raise ModelError(f"{path.parent}: no config.json in this folder, so it is no Hugging Face model")
    config = read_hf_config(path)
    architecture = registry.of_hf(config)
    return architecture, architecture.read_hf_config(config)


def _open_gguf(path: Path) -> GGUFFile:
    if path.suffix != ".gguf":
        raise ModelError(f"{path}: neither a Hugging Face folder nor a .gguf file")
    return GGUFFile(path)


def _read_gguf(file: GGUFFile) -> tuple[Architecture, ModelConfig]:
    architecture = registry.of_gguf(file.header)
    return architecture, architecture.read_gguf_config(file)
