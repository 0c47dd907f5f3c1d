"""Where rows live: the contract of a storage, and which one serves a device.

A storage knows layers, planes and rows. It knows no sequences and no positions.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, Protocol, get_args

import torch

from elastikv.errors import InvalidRequest
from elastikv.memory.budget import Budget
from elastikv.memory.storage import pages
from elastikv.memory.storage.copy import CopyStorage
from elastikv.memory.storage.mmap import MmapStorage
from elastikv.memory.storage.planes import LayerPlanes

StorageKind = Literal["auto", "mmap", "copy"]

_log = logging.getLogger(__name__)


class Storage(Protocol):
    """Rows ``[0, capacity)`` of every plane of every layer, backed by memory and charged to a budget.

    Starts with capacity 0. Tensors handed out are good until ``generation`` changes; those of
    ``mmap`` keep their addresses for ever. After ``close`` they read zeros or old contents.
    """

    default_growth: str
    layers: tuple[LayerPlanes, ...]
    limit: int
    capacity: int
    generation: int
    page_rows: int
    """Rows that fill a page of the widest plane: the step below which rounding costs nothing."""

    @property
    def name(self) -> StorageKind: ...

    @property
    def committed_bytes(self) -> int:
        """Bytes backed by memory now; the budget was charged exactly these."""
        ...

    @property
    def reserved_bytes(self) -> int:
        """Bytes of address space; at least ``committed_bytes``."""
        ...

    def tensors(self, layer: int) -> tuple[torch.Tensor, ...]:
        """``[capacity, *shape]`` per plane of a layer, in the planes' order."""
        ...

    def added_bytes(self, capacity: int) -> int:
        """By how much ``committed_bytes`` would change if the capacity were this."""
        ...

    def peak_bytes(self, capacity: int) -> int:
        """Most bytes that a growth to ``capacity`` holds on top of ``committed_bytes`` while it runs."""
        ...

    def grow(self, capacity: int, n_keep: int) -> None:
        """Enlarge; rows ``[0, n_keep)`` keep their contents. CacheFull: all is as before."""
        ...

    def shrink(self, capacity: int, n_keep: int) -> None:
        """Give back rows ``[capacity, ...)``. Never refused, for it is also how a growth is undone."""
        ...

    def release_front(self, layer: int, n_rows: int) -> int:
        """Rows ``[0, n_rows)`` of a layer are not wanted any more; returns the bytes given back.

        The other rows keep their numbers. Released rows must not be written again.
        """
        ...

    def released(self, layer: int) -> int:
        """How many rows of a layer ``release_front`` took."""
        ...

    def close(self) -> None: ...

    def check(self) -> None:
        """Assert every invariant."""
        ...


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
