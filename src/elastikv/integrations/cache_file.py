"""A prompt cache on disk (see ``memory.checked_file``).

The metadata says for which model the file is and what each layer held. Only what a layer still needs is written: no
spare capacity, no rows that its window has passed.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedConfig

from elastikv.errors import SnapshotError
from elastikv.integrations.cache_memory import CacheMemory
from elastikv.memory import checked_file
from elastikv.runtimes.config_identity import config_digest

_FORMAT = "elastikv-prompt-cache 1"


def write_cache_file(path: Path, memory: CacheMemory, config: PreTrainedConfig) -> None:
    """Write what ``memory`` holds of a model of ``config``; a file of this name is always whole.

    Raises OSError where it cannot be written: ``path`` is then as it was.
    """
    named: dict[str, torch.Tensor] = {}
    layers = []
    for index, (facts, tensors) in enumerate(memory.snapshot()):
        layers.append({**facts, "tensors": list(tensors)})
        named.update({f"{index}.{name}": tensor for name, tensor in tensors.items()})
    metadata = {"format": _FORMAT, "fingerprint": config_digest(config), "layers": json.dumps(layers)}
    checked_file.write(path, named, metadata)


def read_cache_file(path: Path, memory: CacheMemory, config: PreTrainedConfig, device: torch.device) -> None:
    """Fill an empty memory, with tensors on ``device``. Raises SnapshotError, CacheFull: it is empty again."""
    with checked_file.open_file(path) as raw:
        header = checked_file.read_header(raw, path, _FORMAT)
        checked_file.verify(raw, header, path)
    if header.metadata["fingerprint"] != config_digest(config):
        raise SnapshotError(f"{path} was saved for another model than this {config.model_type}")
    layers = json.loads(header.metadata["layers"])
    with safe_open(path, framework="pt", device=str(device)) as file:
        memory.restore(
            (facts, {name: file.get_tensor(f"{index}.{name}") for name in facts["tensors"]})
            for index, facts in enumerate(layers)
        )
