"""What the layers of one cache share: limit, growth policy, budget. Here it is decided who grows and when.

One forward pass is all or nothing: its first layer asks for room in *all* layers before anything is
written. Only the first pass of an empty cache meets layers of unknown shape on its way; if one of
them is refused, the cache is emptied again.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, get_args

import torch

from elastikv.arguments import MOST, whole_number
from elastikv.errors import CacheFull, InvalidRequest
from elastikv.integrations.layer_cells import LayerCells
from elastikv.memory.base import MemoryStats, SequenceStats
from elastikv.memory.budget import Budget
from elastikv.memory.growth import offers, parse_growth
from elastikv.memory.storage import StorageKind

_log = logging.getLogger(__name__)

CapacityChange = tuple[LayerCells, int, int]
"""``(cells, capacity, rows to keep)``"""


Snapshot = tuple[dict[str, Any], dict[str, torch.Tensor]]
"""Facts for a header, and tensors by name."""


class Member(Protocol):
    """A layer of the cache that remembers something."""

    def copy_from(self, other: Any) -> None:
        """Hold what ``other`` holds, in memory of its own. CacheFull: this layer is empty."""
        ...

    def snapshot(self) -> Snapshot:
        """What ``restore`` needs to hold the same again: facts for a header, and views."""
        ...

    def restore(self, facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Into an empty layer. CacheFull: it is empty still."""
        ...

    def reset(self) -> None:
        """Forget everything and give the memory back."""
        ...


class StateOwner(Member, Protocol):
    """A layer that stores a state of fixed size."""

    @property
    def committed_bytes(self) -> int:
        """Of the state."""
        ...


class CellsOwner(Member, Protocol):
    """A layer that stores a row per token."""

    cells: LayerCells | None
    length: int

    @property
    def n_used(self) -> int:
        """Rows of ``cells`` that hold something."""
        ...

    def rows_needed(self, n_new: int) -> int:
        """Rows that ``cells`` must have to take ``n_new`` more tokens."""
        ...

    def row_limit(self, n_needed: int) -> int:
        """Rows that a growth policy may go up to; at least ``n_needed``."""
        ...


class CacheMemory:
    """Budget, growth, and the layers that stand on them. ``n_ctx`` counts tokens of a sequence."""

    def __init__(self, n_ctx: int, growth: str, initial: int, budget: Budget, storage: StorageKind) -> None:
        whole_number("n_ctx", n_ctx, 1, MOST)
        whole_number("initial", initial, 1, MOST)
        if storage not in get_args(StorageKind):
            raise InvalidRequest(f"storage must be one of {', '.join(get_args(StorageKind))}, got {storage!r}")
        self.n_ctx = n_ctx
        self.budget = budget
        # The layers hold this object. Were it to hold them, nothing would be freed before the next collection.
        self._members: list[weakref.ref[Member]] = []
        self._owners: list[weakref.ref[CellsOwner]] = []
        self._states: list[weakref.ref[StateOwner]] = []
        self.n_resizes = 0
        self.resize_seconds = 0.0
        self._initial = initial
        self._storage: StorageKind = storage
        self._growth = parse_growth(growth)

    def add_member(self, layer: Member) -> None:
        """In the order in which a forward pass comes to them; those of two kinds may be added twice."""
        if layer not in self.members:
            self._members.append(weakref.ref(layer))

    def add_owner(self, layer: CellsOwner) -> None:
        """A member that has cells, in the same order."""
        self.add_member(layer)
        self._owners.append(weakref.ref(layer))

    def add_state(self, layer: StateOwner) -> None:
        """A member that has a state, which the budget counts from now on."""
        self.add_member(layer)
        self._states.append(weakref.ref(layer))
        self.budget.watch(layer)

    @property
    def members(self) -> list[Member]:
        """Layers that remember something and are still in use."""
        return [member for reference in self._members if (member := reference())]

    @property
    def owners(self) -> list[CellsOwner]:
        """Those of them that store a row per token."""
        return [owner for reference in self._owners if (owner := reference())]

    def leads(self, layer: Member) -> bool:
        """Whether ``layer`` is the first one that a forward pass comes to."""
        return layer is self._members[0]()

    def open_cells(self, samples: Sequence[torch.Tensor]) -> LayerCells:
        """Cells without a row yet, shaped like ``samples`` (``[batch, heads, n, dim]``, one per plane)."""
        return LayerCells(samples, self.n_ctx, self._storage, self.budget)

    def make_room(self, n_new: int, owners: Sequence[CellsOwner]) -> None:
        """Room for ``n_new`` tokens in each of ``owners`` that has cells, or CacheFull and no change."""
        needs = []
        for owner in owners:
            if owner.cells is None:
                continue
            if owner.length + n_new > self.n_ctx:
                raise CacheFull("n_ctx", asked=n_new, left=self.n_ctx - owner.length, limit=self.n_ctx)
            n_rows = owner.rows_needed(n_new)
            if n_rows > owner.cells.capacity:
                needs.append((owner, owner.cells, n_rows))
        if needs:
            self._grow(needs)

    def snapshot(self) -> list[Snapshot]:
        """What each member holds, as views."""
        return [member.snapshot() for member in self.members]

    def restore(self, snapshots: Iterable[Snapshot]) -> None:
        """Into empty members. Whatever is raised, CacheFull for example: they are empty again."""
        try:
            for member, (facts, tensors) in zip(self.members, snapshots, strict=True):
                member.restore(facts, tensors)
        except BaseException:
            self.reset()
            raise

    def reset(self) -> None:
        """Forget everything in all layers and give the memory back."""
        for member in self.members:
            member.reset()

    def shrink_to_fit(self) -> int:
        """Give back spare capacity; returns the bytes given back."""
        before = self.budget.kv_bytes
        self.set_capacities([(cells, owner.n_used, owner.n_used) for owner, cells in self._open()])
        return before - self.budget.kv_bytes

    @property
    def batch_size(self) -> int:
        """-1 before the first forward pass."""
        return next((cells.batch_size for _, cells in self._open()), -1)

    def stats(self) -> MemoryStats:
        """What all layers hold; cells are those of the layer that has most, times the batch's rows."""
        opened = self._open()
        in_states = sum(state.committed_bytes for reference in self._states if (state := reference()))
        committed = sum(cells.storage.committed_bytes for _, cells in opened) + in_states
        reserved = sum(cells.storage.reserved_bytes for _, cells in opened) + in_states
        n_rows = max(self.batch_size, 0)
        used = max((owner.length for owner, _ in opened), default=0)
        capacity = max((cells.capacity for _, cells in opened), default=0)
        sequence = (used, capacity, committed // max(n_rows, 1), reserved // max(n_rows, 1))
        return MemoryStats(
            capacity_cells=capacity * n_rows,
            used_cells=used * n_rows,
            committed_bytes=committed,
            reserved_bytes=reserved,
            peak_committed_bytes=self.budget.peak_bytes,
            compute_bytes=self.budget.compute_bytes,
            budget_bytes=self.budget.limit_bytes,
            n_resizes=self.n_resizes,
            resize_seconds=self.resize_seconds,
            sequences=tuple(SequenceStats(row, *sequence) for row in range(n_rows)),
        )

    def _open(self) -> list[tuple[CellsOwner, LayerCells]]:
        return [(owner, owner.cells) for owner in self.owners if owner.cells is not None]

    def set_capacities(self, changes: Sequence[CapacityChange]) -> None:
        """All of them change, or (CacheFull) none does. Growths come first, for a shrink cannot fail."""
        self.budget.require(self._peak_bytes(changes))
        started = time.perf_counter()
        done: list[CapacityChange] = []
        try:
            for cells, capacity, n_keep in sorted(changes, key=lambda change: change[1] <= change[0].capacity):
                before = cells.capacity
                cells.set_capacity(capacity, n_keep)
                done.append((cells, before, n_keep))
        except BaseException:
            for cells, before, n_keep in reversed(done):
                cells.set_capacity(before, n_keep)
            raise
        self.n_resizes += 1
        self.resize_seconds += time.perf_counter() - started

    def _grow(self, needs: Sequence[tuple[CellsOwner, LayerCells, int]]) -> None:
        """By the policy; by less, down to what is needed, where the budget has no room for more."""
        keeps = [(cells, owner.n_used) for owner, cells, _ in needs]

        def changes(capacities: Sequence[int]) -> list[CapacityChange]:
            return [(cells, capacity, kept) for (cells, kept), capacity in zip(keeps, capacities, strict=True)]

        def n_spare() -> int:
            n_bytes = self.budget.left() - self._peak_bytes(changes(least))
            return max(n_bytes, 0) // sum(cells.bytes_per_row for cells, _ in keeps)

        least = [n_rows for _, _, n_rows in needs]
        wanted = [self._policy_capacity(*need) for need in needs]
        for capacities in offers(least, wanted, n_spare):
            if capacities == least or self._peak_bytes(changes(capacities)) <= self.budget.left():
                break
        self.set_capacities(changes(capacities))
        _log.debug(
            "%d layers grew, the first to %d cells of %d bytes", len(needs), capacities[0], keeps[0][0].bytes_per_row
        )

    def _policy_capacity(self, owner: CellsOwner, cells: LayerCells, n_rows: int) -> int:
        return self._growth.capacity_for(
            n_rows,
            cells.capacity,
            initial=self._initial,
            n_ctx=owner.row_limit(n_rows),
            # Layers whose shape is not known yet are taken to be like this one.
            bytes_per_cell=cells.bytes_per_row * len(self._owners),
            page_cells=cells.storage.page_rows,
        )

    def _peak_bytes(self, changes: Sequence[CapacityChange]) -> int:
        """Most bytes on top of what is committed while the growths run one after the other."""
        added = peak = 0
        for cells, capacity, _ in changes:
            if capacity > cells.capacity:
                peak = max(peak, added + cells.storage.peak_bytes(capacity))
                added += cells.storage.added_bytes(capacity)
        return peak
