"""Create, copy, swap: a resize layer by layer that works on every device.

    layer        0      1      2      3          committed while layer 2 is being copied:
    before      old    old    old    old         new 0, new 1, old 2 + new 2, old 3
    copying     new    new  old+new  old

so the peak of a growth is the new size plus one old layer, never two caches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Final

import torch

from elastikv.errors import CacheFull
from elastikv.memory.budget import Budget
from elastikv.memory.storage import pages
from elastikv.memory.storage.blocks import Block, BlockAllocator, allocate_block, committed_size
from elastikv.memory.storage.planes import LayerPlanes, rows_per_page


class CopyStorage:
    """Rows in blocks that are replaced when they are too small. See ``Storage`` for the contract."""

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
        self.page_rows = rows_per_page(self.layers, pages.PAGE)
        self._budget = budget
        self._device = device
        self._allocate = allocate
        self._released = [0] * len(self.layers)
        self._blocks: list[list[Block]] = [[] for _ in self.layers]
        self._block_rows = [0] * len(self.layers)

    @property
    def committed_bytes(self) -> int:
        return sum(self._layer_bytes(layer) for layer in range(len(self.layers)))

    @property
    def reserved_bytes(self) -> int:
        return self.committed_bytes

    def tensors(self, layer: int) -> tuple[torch.Tensor, ...]:
        planes, blocks = self.layers[layer], self._blocks[layer]
        if not blocks:
            nothing = torch.empty(0, dtype=torch.uint8, device=self._device)
            return tuple(plane.view(nothing, 0) for plane in planes)
        n_rows = self._block_rows[layer]
        return tuple(
            plane.view(block.data, self.capacity, n_rows * plane.row_bytes)
            for plane, block in zip(planes, blocks, strict=True)
        )

    def released(self, layer: int) -> int:
        return self._released[layer]

    def added_bytes(self, capacity: int) -> int:
        return sum(self._new_bytes(layer, capacity) for layer in range(len(self.layers))) - self.committed_bytes

    def peak_bytes(self, capacity: int) -> int:
        added = peak = 0
        for layer in range(len(self.layers)):
            added += self._new_bytes(layer, capacity)
            peak = max(peak, added)
            added -= self._layer_bytes(layer)
        return peak

    def grow(self, capacity: int, n_keep: int) -> None:
        if not self.capacity < capacity <= self.limit:
            raise ValueError(f"cannot grow from {self.capacity} to {capacity} rows of {self.limit}")
        before, peak = self.committed_bytes, self.peak_bytes(capacity)
        self._budget.charge(peak)
        done = 0
        try:
            for done in range(len(self.layers)):
                self._replace(done, capacity, n_keep)
        except BaseException as error:
            self._budget.release(peak - (self.committed_bytes - before))
            self._give_back(range(done), self.capacity, n_keep)
            self.generation += 1  # the contents are back, but not where they were
            if isinstance(error, MemoryError):
                raise CacheFull("machine", asked=peak, left=self._budget.left(), limit=None) from error
            raise
        self._budget.release(peak - (self.committed_bytes - before))
        self.capacity = capacity
        self.generation += 1

    def shrink(self, capacity: int, n_keep: int) -> None:
        if not n_keep <= capacity < self.capacity:
            raise ValueError(f"cannot shrink from {self.capacity} to {capacity} rows, {n_keep} of them in use")
        self._give_back(range(len(self.layers)), capacity, n_keep)
        self.capacity = capacity
        self.generation += 1

    def release_front(self, layer: int, n_rows: int) -> int:
        if n_rows <= self._released[layer]:
            return 0
        before = self._layer_bytes(layer)
        for plane, block in zip(self.layers[layer], self._blocks[layer], strict=True):
            if plane.bands or not block.give_back(0, n_rows * plane.row_bytes):
                return 0  # this device keeps what it has
        self._released[layer] = n_rows
        n_bytes = before - self._layer_bytes(layer)
        self._budget.release(n_bytes)
        return n_bytes

    def close(self) -> None:
        self._budget.release(self.committed_bytes)
        for blocks in self._blocks:
            for block in blocks:
                block.close()
            blocks.clear()
        self.capacity = 0
        self.generation += 1

    def check(self) -> None:
        assert 0 <= self.capacity <= self.limit
        for planes, blocks in zip(self.layers, self._blocks, strict=True):
            assert len(blocks) == (len(planes) if self.capacity else 0), "a layer lacks blocks"
            for plane, block in zip(planes, blocks, strict=True):
                assert len(block.data) >= plane.n_bands * self.capacity * plane.row_bytes, (
                    "a block is smaller than the capacity"
                )

    def _replace(self, layer: int, capacity: int, n_keep: int) -> None:
        """Swap a layer's blocks for larger ones with the same first ``n_keep`` rows."""
        released = self._released[layer]
        new: list[Block] = []
        try:
            for plane in self.layers[layer]:
                n_bytes, unused = plane.n_bands * capacity * plane.row_bytes, released * plane.row_bytes
                new.append(self._allocate(n_bytes, self._device, unused))
            for plane, source, target in zip(self.layers[layer], self._blocks[layer], new, strict=False):
                kept = (slice(None),) * plane.row_dim + (slice(released, n_keep),)
                old_rows = plane.view(source.data, n_keep, self._block_rows[layer] * plane.row_bytes)
                plane.view(target.data, n_keep, capacity * plane.row_bytes)[kept].copy_(old_rows[kept])
        except BaseException:
            for block in new:
                block.close()
            raise
        old, self._blocks[layer] = self._blocks[layer], new
        self._block_rows[layer] = capacity
        for block in old:
            block.close()

    def _give_back(self, layers: Iterable[int], capacity: int, n_keep: int) -> None:
        """Cut layers down to ``capacity`` rows, and tell the budget."""
        before = self.committed_bytes
        for layer in layers:
            self._cut(layer, capacity, n_keep)
        self._budget.release(before - self.committed_bytes)

    def _cut(self, layer: int, capacity: int, n_keep: int) -> None:
        """Give back what is behind ``capacity`` rows. Never fails.

        Pages go in place. Where a device cannot do that, a smaller copy takes the block's place; if
        there is no room even for that, the block stays as large as it is, and is counted as such.
        """
        if not capacity:
            for block in self._blocks[layer]:
                block.close()
            self._blocks[layer] = []
            return
        in_place = [
            plane.bands is None and block.give_back(capacity * plane.row_bytes, len(block.data))
            for plane, block in zip(self.layers[layer], self._blocks[layer], strict=True)
        ]
        if all(in_place):
            return
        n_bytes = self._new_bytes(layer, capacity)
        with contextlib.suppress(CacheFull, MemoryError):
            self._budget.charge(n_bytes)
            try:
                self._replace(layer, capacity, n_keep)
            finally:
                self._budget.release(n_bytes)

    def _layer_bytes(self, layer: int) -> int:
        return sum(block.committed for block in self._blocks[layer])

    def _new_bytes(self, layer: int, capacity: int) -> int:
        released = self._released[layer]
        return sum(
            committed_size(plane.n_bands * capacity * plane.row_bytes, self._device, released * plane.row_bytes)
            for plane in self.layers[layer]
        )
