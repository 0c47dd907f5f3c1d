"""What runs a model. ``find`` chooses; ``base.py`` is what those above know of the one chosen."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from elastikv.errors import InvalidRequest, NotInstalled, UnsupportedModel

if TYPE_CHECKING:
    from elastikv.runtimes.base import Source

# Modules are imported when a model is looked for. "auto" takes the first that can run it.
RUNTIMES = {
    "elastikv": ("elastikv.runtimes.own", "OwnSource"),
    "transformers": ("elastikv.runtimes.transformers", "TransformersSource"),
    "llama.cpp": ("elastikv.runtimes.llama_cpp.runtime", "LlamaCppSource"),
}

WITH_DEVICES = "llama.cpp"
"""The runtime that takes ``n_gpu_layers``."""

_log = logging.getLogger(__name__)


def find(path: str | Path, runtime: str = "auto", n_gpu_layers: int = 0) -> Source:
    """The model at ``path`` (a folder, a GGUF file, or a ``config.json`` if only facts are wanted), with its runtime.

    n_gpu_layers: how many layers a device is asked for; "auto" is llama.cpp then.
    Raises InvalidRequest for an unknown runtime, UnsupportedModel as the first says it, ModelError, CorruptFile.
    """
    found = look(path, runtime, n_gpu_layers)
    if found.runtime == WITH_DEVICES and runtime == "auto":
        _log.info("%s; it runs through %s", found.why, found.runtime)
    return found.source


class Found(NamedTuple):
    """A model with its runtime. why: it is that one and not the first, if it is not."""

    source: Source
    runtime: str
    why: str


def look(path: str | Path, runtime: str = "auto", n_gpu_layers: int = 0) -> Found:
    """As ``find``, which tells the log as well. Raises as it does."""
    if runtime not in ("auto", *RUNTIMES):
        raise InvalidRequest(f"runtime must be one of auto, {', '.join(RUNTIMES)}, got {runtime!r}")
    if n_gpu_layers and runtime not in ("auto", WITH_DEVICES):
        raise InvalidRequest(f"n_gpu_layers (-ngl) is for the runtime {WITH_DEVICES}; {runtime} computes on the CPU")
    names = (runtime,) if runtime != "auto" else (WITH_DEVICES,) if n_gpu_layers else tuple(RUNTIMES)
    refusals: list[UnsupportedModel] = []
    for name in names:
        module, source = RUNTIMES[name]
        try:
            found: Source = getattr(importlib.import_module(module), source)(Path(path))
        except UnsupportedModel as refusal:
            refusals.append(refusal)
            continue
        why = f"{path}: layers are to be on a device" if n_gpu_layers else str(refusals[0]) if refusals else ""
        return Found(found, name, why)
    if isinstance(refusals[-1], NotInstalled) and len(refusals) > 1:
        raise UnsupportedModel(f"{refusals[0]}; {refusals[-1]}")
    raise refusals[0]


__all__ = ["RUNTIMES", "Found", "find", "look"]
