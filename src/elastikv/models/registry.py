"""The architectures: a new one is a file beside this one, and a line here."""

from __future__ import annotations

from elastikv.errors import UnsupportedModel
from elastikv.models.architecture import Architecture
from elastikv.models.llama import Llama
from elastikv.models.mistral import Mistral
from elastikv.models.qwen2 import Qwen2
from elastikv.models.qwen3 import Qwen3
from elastikv.models.qwen3_5 import Qwen3_5
from elastikv.models.qwen3_5_moe import Qwen3_5Moe
from elastikv.models.qwen3_moe import Qwen3Moe
from elastikv.weights.gguf.header import GGUFHeader
from elastikv.weights.hf import HFConfig

ARCHITECTURES: tuple[Architecture, ...] = (
    Llama(),
    Mistral(),
    Qwen2(),
    Qwen3(),
    Qwen3_5(),
    Qwen3Moe(),
    Qwen3_5Moe(),
)
"""Where several share a name in GGUF, the first reads it."""

_BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
_BY_CLASS = {name: architecture for architecture in ARCHITECTURES for name in architecture.classes}
_BY_MODEL_TYPE = {name: architecture for architecture in ARCHITECTURES for name in architecture.model_types}
_BY_GGUF_NAME = {architecture.gguf_name: architecture for architecture in reversed(ARCHITECTURES)}


def by_name(name: str) -> Architecture:
    """The architecture of a config."""
    return _BY_NAME[name]


def of_hf(config: HFConfig) -> Architecture:
    """The architecture of a config: by its classes, or by its model type where it names none (a text_config alone)."""
    for name in config.classes:
        if name in _BY_CLASS:
            return _BY_CLASS[name]
    if not config.classes and config.model_type in _BY_MODEL_TYPE:
        return _BY_MODEL_TYPE[config.model_type]
    what = ", ".join(config.classes) or config.model_type
    if what is None:
        raise UnsupportedModel(f"{config.name}: config.json names no architecture")
    raise UnsupportedModel(f"{config.name}: {what} is not supported; supported are {', '.join(_BY_CLASS)}")


def of_gguf(header: GGUFHeader) -> Architecture:
    """Raises UnsupportedModel."""
    if header.architecture not in _BY_GGUF_NAME:
        names = ", ".join(dict.fromkeys(architecture.gguf_name for architecture in ARCHITECTURES))
        raise UnsupportedModel(
            f"{header.path}: architecture {header.architecture!r} is not supported; supported: {names}"
        )
    return _BY_GGUF_NAME[header.architecture]
