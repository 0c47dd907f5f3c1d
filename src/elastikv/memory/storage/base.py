"""Where rows live: the contract of a storage.

A storage knows layers, planes and rows. It knows no sequences and no positions.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch

from elastikv.memory.storage.planes import LayerPlanes

StorageKind = Literal["auto", "mmap", "copy"]


class Storage(Protocol):
    """Rows ``[0, capacity)`` of every plane of every layer, backed by memory and charged to a budget.

    Starts with capacity 0. Tensors handed out are good until ``generation`` changes; those of
    ``mmap`` keep their addresses for ever. After ``close`` they read zeros or old contents.
    """

    default_growth: str
    """The growth policy that suits what a resize costs here."""
    layers: tuple[LayerPlanes, ...]
    limit: int
    capacity: int
    generation: int
    page_rows: int
    """Rows that fill a page of the widest plane: the step below which rounding costs nothing."""

    @property
    def name(self) -> StorageKind:
        """What ``--kv-storage`` calls it."""
        ...

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
        """Enlarge to ``capacity`` rows; rows ``[0, n_keep)`` keep their contents.

        Raises CacheFull if the budget or the machine refuses, with nothing changed; ValueError unless it is larger than
        now and at most ``limit``.
        """
        ...

    def shrink(self, capacity: int, n_keep: int) -> None:
        """Give back rows from ``capacity`` on. Never refused, for it is also how a growth is undone.

        Raises ValueError unless it is smaller than now and at least ``n_keep``, the rows in use.
        """
        ...

    def release_front(self, layer: int, n_rows: int) -> int:
        """Give back what it can of rows ``[0, n_rows)`` of a layer; returns the bytes.

        The other rows keep their numbers. Released rows must not be written again.
        """
        ...

    def released(self, layer: int) -> int:
        """How many rows of a layer ``release_front`` took."""
        ...

    def close(self) -> None:
        """Give all memory back."""
        ...

    def check(self) -> None:
        """Raise AssertionError if an invariant does not hold."""
        ...
