"""What a Hugging Face folder's model is called, and which of its files hold the weights. Without torch."""

from __future__ import annotations

import json
from pathlib import Path

from elastikv.errors import CorruptFile

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_REPOSITORY = "models--"


def folder_name(folder: Path) -> str:
    """The folder's own name; of the hub's cache (``models--user--repo/snapshots/<commit>``) the repository's."""
    folder = folder.resolve()
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith(_REPOSITORY):
        return repository.removeprefix(_REPOSITORY).replace("--", "/")
    return folder.name


def weight_names(folder: Path) -> list[str]:
    """The safetensors that there should be: those of the index, else the single one.

    Raises CorruptFile where the index is broken.
    """
    index = folder / INDEX
    if not index.is_file():
        return [SINGLE]
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CorruptFile(f"{index}: no valid index of shards ({error!r})") from None
