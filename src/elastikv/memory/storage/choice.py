"""Which storage serves a device."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import get_args

import torch

from elastikv.errors import InvalidRequest
from elastikv.memory.budget import Budget
from elastikv.memory.storage import pages
from elastikv.memory.storage.base import Storage, StorageKind
from elastikv.memory.storage.copy import CopyStorage
from elastikv.memory.storage.mmap import MmapStorage
from elastikv.memory.storage.planes import LayerPlanes

_log = logging.getLogger(__name__)


def storage_type(kind: StorageKind, device: torch.device) -> type[CopyStorage] | type[MmapStorage]:
    """Which storage serves a device, unless its address space cannot be had. Raises InvalidRequest."""
    if kind not in get_args(StorageKind):
        raise InvalidRequest(f"{kind!r} is not a storage; choose auto, mmap or copy")
    has_mmap = device.type == "cpu" and pages.supported()
    return MmapStorage if has_mmap and kind != "copy" else CopyStorage


def open_storage(
    kind: StorageKind,
    layers: Sequence[LayerPlanes],
    limit: int,
    budget: Budget,
    device: torch.device | str = "cpu",
) -> Storage:
    """A storage for up to ``limit`` rows. ``auto``: ``mmap`` where the device and the system can, else ``copy``.

    Where ``mmap`` cannot be had, ``copy`` takes its place and a warning is logged.
    """
    device = torch.device(device)
    if storage_type(kind, device) is CopyStorage:
        if kind == "mmap":
            _log.warning("the mmap storage needs Linux and the CPU; the copy storage serves %s instead", device)
        return CopyStorage(layers, limit, budget, device)
    try:
        return MmapStorage(layers, limit, budget)
    except MemoryError as error:
        _log.warning("falling back to the copy storage: %s", error)
        return CopyStorage(layers, limit, budget, device)
