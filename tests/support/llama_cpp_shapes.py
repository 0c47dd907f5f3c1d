"""Small random GGUFs of every kind of memory that llama.cpp has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.gguf_only import write_gemma3, write_mamba
from support.tiny_models import tiny_model

from tools.gguf_export import export_gguf

_DELTA_NET = {"linear_key_head_dim": 32, "linear_value_head_dim": 32}
OWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "qwen3_moe": {},
    "qwen3_5": _DELTA_NET,
    "qwen3_5_moe": _DELTA_NET,
}
"""Those that our own kernels run as well, and what their tiny models need to be taken by llama.cpp."""

OTHERS = {"gemma3": write_gemma3, "mamba": write_mamba}


def write_gguf(arch: str, folder: Path) -> Path:
    """A model of this architecture in a folder."""
    path = folder / f"{arch}.gguf"
    if arch in OTHERS:
        return OTHERS[arch](path)
    return export_gguf(tiny_model(arch, folder / arch, **OWN[arch]), path)
