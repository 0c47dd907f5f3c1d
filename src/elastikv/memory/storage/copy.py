"""Create, copy, swap: a resize layer by layer that works on every device.

    layer        0      1      2      3          committed while layer 2 is being copied:
    before      old    old    old    old         new 0, new 1, old 2 + new 2, old 3
    copying     new    new  old+new  old

so the peak of a growth is the new size plus one old layer, never two caches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from typing_extensions import override

from elastikv.errors import CacheFull
from elastikv.memory.budget import Budget
from elastikv.memory.storage.base import Storage
from elastikv.memory.storage.blocks import Block, BlockAllocator, allocate_block, committed_size
from elastikv.memory.storage.planes import LayerPlanes, rows_per_page


class _Layer(NamedTuple):
    """A block per plane, and the rows that they were laid out for. Replaced as a whole, or not at all."""

    blocks: tuple[Block, ...] = ()
    n_rows: int = 0


class CopyStorage(Storage):
    """Rows in blocks that are replaced when they are too small."""

    name: Final = "copy"
    default_growth = "double:1GiB"

    def __init__(
        self,
        layers: Sequence[LayerPlanes],
        limit: int,
        budget: Budget,
        device: torch.device,
        allocate: BlockAllocator = allocate_block,
    ) -> None:
        self.layers = tuple(layers)
        self.limit = limit
        self.capacity = 0
        self.generation = 0
        self.page_rows = rows_per_page(self.layers)
        self._budget = budget
        self._device = device
        self._allocate = allocate
        self._released = [0] * len(self.layers)
        self._held = [_Layer() for _ in self.layers]
        self._pool = str(device)
        budget.watch(self, pool=self._pool)

    @property
    @override
    def committed_bytes(self) -> int:
        return sum(self._layer_bytes(layer) for layer in range(len(self.layers)))

    @property
    @override
    def reserved_bytes(self) -> int:
        return self.committed_bytes

    @override
    def tensors(self, layer: int) -> tuple[torch.Tensor, ...]:
        planes, (blocks, n_rows) = self.layers[layer], self._held[layer]
        if not blocks:
            nothing = torch.empty(0, dtype=torch.uint8, device=self._device)
            return tuple(plane.view(nothing, 0) for plane in planes)
        return tuple(
            plane.view(block.data, self.capacity, n_rows * plane.row_bytes)
            for plane, block in zip(planes, blocks, strict=True)
        )

    @override
    def released(self, layer: int) -> int:
        return self._released[layer]

    @override
    def added_bytes(self, capacity: int) -> int:
        return sum(self._new_bytes(layer, capacity) for layer in range(len(self.layers))) - self.committed_bytes

    @override
    def peak_bytes(self, capacity: int) -> int:
        added = peak = 0
        for layer in range(len(self.layers)):
            added += self._new_bytes(layer, capacity)
            peak = max(peak, added)
            added -= self._layer_bytes(layer)
        return peak

    @override
    def grow(self, capacity: int, n_keep: int) -> None:
        if not self.capacity < capacity <= self.limit:
            raise ValueError(f"cannot grow from {self.capacity} to {capacity} rows of {self.limit}")
        peak = self.peak_bytes(capacity)
        self._budget.require(peak, self._pool)
        self.generation += 1  # before, for what is undone may lie elsewhere too
        try:
            for layer in range(len(self.layers)):
                self._replace(layer, capacity, n_keep)
            self.capacity = capacity
        except BaseException as error:
            self._truncate_all(self.capacity, n_keep)
            if isinstance(error, MemoryError):
                raise CacheFull("machine", asked=peak, left=self._budget.left(self._pool), limit=None) from error
            raise

    @override
    def shrink(self, capacity: int, n_keep: int) -> None:
        if not n_keep <= capacity < self.capacity:
            raise ValueError(f"cannot shrink from {self.capacity} to {capacity} rows, {n_keep} of them in use")
        self.generation += 1
        try:
            self.capacity = capacity
            self._truncate_all(capacity, n_keep)
        except BaseException:
            self._truncate_all(self.capacity, n_keep)  # interrupted: a shrink never fails, so it is done to the end
            raise

    @override
    def release_front(self, layer: int, n_rows: int) -> int:
        if n_rows <= self._released[layer] or not self._has_pages(layer):
            return 0
        before = self._layer_bytes(layer)
        self._released[layer] = n_rows  # first, so that no row is taken for whole that is not
        for plane, block in zip(self.layers[layer], self._held[layer].blocks, strict=True):
            block.give_back(0, n_rows * plane.row_bytes)
        return before - self._layer_bytes(layer)

    @override
    def close(self) -> None:
        self.capacity = 0
        self.generation += 1
        self._truncate_all(0, 0)

    @override
    def check(self) -> None:
        assert 0 <= self.capacity <= self.limit
        for planes, (blocks, _) in zip(self.layers, self._held, strict=True):
            assert len(blocks) == (len(planes) if self.capacity else 0), "a layer lacks blocks"
            for plane, block in zip(planes, blocks, strict=True):
                assert len(block.data) >= plane.n_bands * self.capacity * plane.row_bytes, (
                    "a block is smaller than the capacity"
                )

    def _replace(self, layer: int, capacity: int, n_keep: int) -> None:
        """Swap a layer's blocks for larger ones with the same first ``n_keep`` rows."""
        planes, released, old = self.layers[layer], self._released[layer], self._held[layer]
        new: list[Block] = []
        try:
            for plane in planes:
                n_bytes, unused = plane.n_bands * capacity * plane.row_bytes, released * plane.row_bytes
                new.append(self._allocate(n_bytes, self._device, unused))
            for plane, source, target in zip(planes, old.blocks, new, strict=False):
                kept = (slice(None),) * plane.row_dim + (slice(released, n_keep),)
                old_rows = plane.view(source.data, n_keep, old.n_rows * plane.row_bytes)
                plane.view(target.data, n_keep, capacity * plane.row_bytes)[kept].copy_(old_rows[kept])
            self._held[layer] = _Layer(tuple(new), capacity)
        except BaseException:
            for block in new:
                block.close()
            raise
        for block in old.blocks:
            block.close()

    def _truncate_all(self, capacity: int, n_keep: int) -> None:
        for layer in range(len(self.layers)):
            self._truncate(layer, capacity, n_keep)

    def _truncate(self, layer: int, capacity: int, n_keep: int) -> None:
        """Give back what is behind ``capacity`` rows, if there is anything. Never fails.

        Pages go in place. Where a device cannot do that, a smaller copy takes the block's place; if
        there is no room even for that, the block stays as large as it is, and is counted as such.
        """
        held = self._held[layer]
        if not capacity:
            self._held[layer] = _Layer()
            for block in held.blocks:
                block.close()
            return
        if capacity >= held.n_rows:
            return
        if self._has_pages(layer):
            for plane, block in zip(self.layers[layer], held.blocks, strict=True):
                block.give_back(capacity * plane.row_bytes, len(block.data))
            return
        with contextlib.suppress(CacheFull, MemoryError):
            self._budget.require(self._new_bytes(layer, capacity), self._pool)
            self._replace(layer, capacity, n_keep)

    def _has_pages(self, layer: int) -> bool:
        """Whether its rows can be given back in place."""
        planes, blocks = self.layers[layer], self._held[layer].blocks
        return all(plane.bands is None and block.has_pages for plane, block in zip(planes, blocks, strict=True))

    def _layer_bytes(self, layer: int) -> int:
        return sum(block.committed for block in self._held[layer].blocks)

    def _new_bytes(self, layer: int, capacity: int) -> int:
        released = self._released[layer]
        return sum(
            committed_size(plane.n_bands * capacity * plane.row_bytes, self._device, released * plane.row_bytes)
            for plane in self.layers[layer]
        )
