"""What runs a model. ``find`` chooses; ``base.py`` is what those above know of the one chosen."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from elastikv.errors import InvalidRequest, UnsupportedModel

if TYPE_CHECKING:
    from elastikv.runtimes.base import Source

# Modules are imported when a model is looked for. "auto" takes the first that can run it.
RUNTIMES = {
    "elastikv": ("elastikv.runtimes.own", "OwnSource"),
    "transformers": ("elastikv.runtimes.transformers", "TransformersSource"),
}


def find(path: str | Path, runtime: str = "auto") -> Source:
    """The model at ``path`` (a folder, a GGUF file, or a ``config.json`` if only facts are wanted), with its runtime.

    Raises InvalidRequest for an unknown runtime, UnsupportedModel as the first says it, ModelError, CorruptFile.
    """
    if runtime not in ("auto", *RUNTIMES):
        raise InvalidRequest(f"runtime must be one of auto, {', '.join(RUNTIMES)}, got {runtime!r}")
    refusals = []
    for name in RUNTIMES if runtime == "auto" else (runtime,):
        module, source = RUNTIMES[name]
        try:
            found: Source = getattr(importlib.import_module(module), source)(Path(path))
            return found
        except UnsupportedModel as refusal:
            refusals.append(refusal)
    raise refusals[0]


__all__ = ["RUNTIMES", "find"]
