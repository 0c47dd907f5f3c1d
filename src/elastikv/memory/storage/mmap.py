"""Reserve address space once, commit pages on demand, give pages back (CPU, Linux)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final

import torch

from elastikv.errors import CacheFull
from elastikv.memory.budget import Budget
from elastikv.memory.growth import round_up
from elastikv.memory.storage import pages
from elastikv.memory.storage.planes import LayerPlanes, Plane, rows_per_page


class _Extent:
    """One plane's (or band's) part of the region; bytes ``[start, stop)`` of the region are committed.

    offset         start            stop                 offset + reserved
    | given back   | committed      | not yet            |
    """

    def __init__(self, plane: Plane, offset: int) -> None:
        self.plane = plane
        self.offset = self.start = self.stop = offset

    def stop_for(self, n_rows: int) -> int:
        return self.offset + round_up(n_rows * self.plane.row_bytes, pages.PAGE)

    @property
    def committed(self) -> int:
        return self.stop - self.start


class MmapStorage:
    """Rows whose addresses never change. See ``Storage`` for the contract.

    Committed bytes are whole pages per plane. Raises MemoryError where the address space cannot be had.
    """

    name: Final = "mmap"
    default_growth = "step:256"

    def __init__(self, layers: Sequence[LayerPlanes], limit: int, budget: Budget) -> None:
        self.layers = tuple(layers)
        self.limit = limit
        self.capacity = 0
        self.generation = 0
        self.page_rows = rows_per_page(self.layers, pages.PAGE)
        self._budget = budget
        self._released = [0] * len(self.layers)
        self._extents: list[list[_Extent]] = []
        offset = 0
        for layer in self.layers:
            extents = []
            for plane in layer:
                for _ in range(plane.n_bands):
                    extents.append(_Extent(plane, offset))
                    offset += _reservation(plane, limit)
            self._extents.append(extents)
        # Every guard splits a mapping, and a process may have only 65530 of them: too few for many bands.
        banded = any(plane.bands for layer in self.layers for plane in layer)
        self._region = pages.Region(offset, guarded=not banded)

    @property
    def committed_bytes(self) -> int:
        return sum(extent.committed for extent in self._all_extents())

    @property
    def reserved_bytes(self) -> int:
        return self._region.n_bytes

    def tensors(self, layer: int) -> tuple[torch.Tensor, ...]:
        tensors, extents = [], iter(self._extents[layer])
        for plane in self.layers[layer]:
            first, *_ = itertools.islice(extents, plane.n_bands)
            data = self._region.data[first.offset :]
            tensors.append(plane.view(data, self.capacity, _reservation(plane, self.limit)))
        return tuple(tensors)

    def released(self, layer: int) -> int:
        return self._released[layer]

    def added_bytes(self, capacity: int) -> int:
        return sum(max(extent.stop_for(capacity), extent.start) - extent.stop for extent in self._all_extents())

    def peak_bytes(self, capacity: int) -> int:
        return max(self.added_bytes(capacity), 0)

    def grow(self, capacity: int, n_keep: int) -> None:
        if not self.capacity < capacity <= self.limit:
            raise ValueError(f"cannot grow from {self.capacity} to {capacity} rows of {self.limit}")
        n_bytes = self.added_bytes(capacity)
        self._budget.charge(n_bytes)
        try:
            for extent in self._all_extents():
                stop = max(extent.stop_for(capacity), extent.stop)
                self._region.commit(extent.stop, stop)
                extent.stop = stop
        except BaseException as error:
            self._cut(self.capacity)
            self._budget.release(n_bytes)
            if isinstance(error, MemoryError):
                raise CacheFull("machine", asked=n_bytes, left=self._budget.left(), limit=None) from error
            raise
        self.capacity = capacity
        self.generation += 1

    def shrink(self, capacity: int, n_keep: int) -> None:
        if not n_keep <= capacity < self.capacity:
            raise ValueError(f"cannot shrink from {self.capacity} to {capacity} rows, {n_keep} of them in use")
        n_bytes = self._cut(capacity)
        self._budget.release(n_bytes)
        self.capacity = capacity
        self.generation += 1

    def release_front(self, layer: int, n_rows: int) -> int:
        if n_rows <= self._released[layer]:
            return 0
        self._released[layer] = n_rows
        n_bytes = 0
        for extent in self._extents[layer]:
            start = extent.offset + n_rows * extent.plane.row_bytes // pages.PAGE * pages.PAGE
            start = max(min(start, extent.stop), extent.start)
            self._region.discard(extent.start, start, keep_accessible=True)
            n_bytes += start - extent.start
            extent.start = start
        self._budget.release(n_bytes)
        return n_bytes

    def close(self) -> None:
        self._budget.release(self.committed_bytes)
        for extent in self._all_extents():
            extent.start = extent.stop = extent.offset
        self.capacity = 0
        self.generation += 1
        self._region.close()

    def check(self) -> None:
        for extent in self._all_extents():
            end = extent.stop_for(self.capacity)
            assert extent.offset <= extent.start <= extent.stop == max(end, extent.start), "pages differ from capacity"
        assert 0 <= self.capacity <= self.limit

    def _cut(self, capacity: int) -> int:
        """Give back every page behind ``capacity`` rows; returns the bytes. Cannot fail."""
        n_bytes = 0
        for extent in self._all_extents():
            stop = max(extent.stop_for(capacity), extent.start)
            if stop < extent.stop:
                self._region.discard(stop, extent.stop)
                n_bytes += extent.stop - stop
                extent.stop = stop
        return n_bytes

    def _all_extents(self) -> list[_Extent]:
        return [extent for extents in self._extents for extent in extents]


def _reservation(plane: Plane, limit: int) -> int:
    """Bytes for a plane or a band. Large ones start where a huge page may."""
    n_bytes = limit * plane.row_bytes
    return round_up(n_bytes, pages.HUGE_PAGE if n_bytes >= pages.HUGE_PAGE else pages.PAGE)
