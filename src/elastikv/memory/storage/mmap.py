"""Reserve address space once, commit pages on demand, give pages back (CPU, Linux)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from typing_extensions import override

from elastikv.errors import CacheFull
from elastikv.memory.budget import Budget
from elastikv.memory.growth import round_up
from elastikv.memory.storage import pages
from elastikv.memory.storage.base import Storage
from elastikv.memory.storage.planes import LayerPlanes, Plane, rows_per_page


class _Extent:
    """One plane's part of the region; of each band, bytes ``[start, stop)`` are committed.

    offset         offset + start   offset + stop        offset + reserved
    | given back   | committed      | not yet            |

    The numbers change before pages are committed and after they are given back: whatever is interrupted,
    they never say less than is there.
    """

    def __init__(self, plane: Plane, offset: int, band_bytes: int) -> None:
        self.plane = plane
        self.offsets = [offset + band * band_bytes for band in range(plane.n_bands)]
        self.start = self.stop = 0

    def stop_for(self, n_rows: int) -> int:
        return round_up(n_rows * self.plane.row_bytes, pages.PAGE)

    @property
    def committed(self) -> int:
        return len(self.offsets) * (self.stop - self.start)

    def commit(self, region: pages.Region, stop: int) -> None:
        """Raises MemoryError."""
        before, self.stop = self.stop, stop
        for offset in self.offsets:
            region.commit(offset + before, offset + stop)

    def discard_front(self, region: pages.Region, start: int) -> None:
        for offset in self.offsets:
            region.discard(offset + self.start, offset + start, keep_accessible=True)
        self.start = start

    def discard_end(self, region: pages.Region, stop: int) -> None:
        for offset in self.offsets:
            region.discard(offset + stop, offset + self.stop)
        self.stop = stop


class MmapStorage(Storage):
    """Rows whose addresses never change.

    Committed bytes are whole pages per plane. Raises MemoryError where the address space cannot be had.
    """

    name: Final = "mmap"
    default_growth = "step:256"

    def __init__(self, layers: Sequence[LayerPlanes], limit: int, budget: Budget) -> None:
        self.layers = tuple(layers)
        self.limit = limit
        self.capacity = 0
        self.generation = 0
        self.page_rows = rows_per_page(self.layers)
        self._budget = budget
        self._released = [0] * len(self.layers)
        self._extents: list[list[_Extent]] = []
        offset = 0
        for layer in self.layers:
            extents = []
            for plane in layer:
                band_bytes = _reservation(plane, limit)
                extents.append(_Extent(plane, offset, band_bytes))
                offset += plane.n_bands * band_bytes
            self._extents.append(extents)
        # Every guard splits a mapping, and a process may have only 65530 of them: too few for many bands.
        banded = any(plane.bands for layer in self.layers for plane in layer)
        self._region = pages.Region(offset, guarded=not banded)
        budget.watch(self)

    @property
    @override
    def committed_bytes(self) -> int:
        return sum(extent.committed for extent in self._all_extents())

    @property
    @override
    def reserved_bytes(self) -> int:
        return self._region.n_bytes

    @override
    def tensors(self, layer: int) -> tuple[torch.Tensor, ...]:
        return tuple(
            extent.plane.view(
                self._region.data[extent.offsets[0] :], self.capacity, _reservation(extent.plane, self.limit)
            )
            for extent in self._extents[layer]
        )

    @override
    def released(self, layer: int) -> int:
        return self._released[layer]

    @override
    def added_bytes(self, capacity: int) -> int:
        return sum(
            extent.plane.n_bands * (max(extent.stop_for(capacity), extent.start) - extent.stop)
            for extent in self._all_extents()
        )

    @override
    def peak_bytes(self, capacity: int) -> int:
        return max(self.added_bytes(capacity), 0)

    @override
    def grow(self, capacity: int, n_keep: int) -> None:
        if not self.capacity < capacity <= self.limit:
            raise ValueError(f"cannot grow from {self.capacity} to {capacity} rows of {self.limit}")
        n_bytes = self.added_bytes(capacity)
        self._budget.require(n_bytes)
        self.generation += 1
        try:
            for extent in self._all_extents():
                extent.commit(self._region, max(extent.stop_for(capacity), extent.stop))
            self.capacity = capacity
        except BaseException as error:
            self._truncate(self.capacity)
            if isinstance(error, MemoryError):
                raise CacheFull("machine", asked=n_bytes, left=self._budget.left(), limit=None) from error
            raise

    @override
    def shrink(self, capacity: int, n_keep: int) -> None:
        if not n_keep <= capacity < self.capacity:
            raise ValueError(f"cannot shrink from {self.capacity} to {capacity} rows, {n_keep} of them in use")
        self.generation += 1
        try:
            self.capacity = capacity
            self._truncate(capacity)
        except BaseException:
            self._truncate(self.capacity)  # interrupted: a shrink never fails, so it is done to the end
            raise

    @override
    def release_front(self, layer: int, n_rows: int) -> int:
        if n_rows <= self._released[layer]:
            return 0
        before = self.committed_bytes
        self._released[layer] = n_rows  # first, so that no row is taken for whole that is not
        for extent in self._extents[layer]:
            start = n_rows * extent.plane.row_bytes // pages.PAGE * pages.PAGE
            extent.discard_front(self._region, max(min(start, extent.stop), extent.start))
        return before - self.committed_bytes

    @override
    def close(self) -> None:
        self.capacity = 0
        self.generation += 1
        self._region.close()
        for extent in self._all_extents():
            extent.start = extent.stop = 0

    @override
    def check(self) -> None:
        for extent in self._all_extents():
            end = extent.stop_for(self.capacity)
            assert 0 <= extent.start <= extent.stop == max(end, extent.start), "pages differ from capacity"
        assert 0 <= self.capacity <= self.limit

    def _truncate(self, capacity: int) -> None:
        """Give back every page behind ``capacity`` rows. Cannot fail."""
        for extent in self._all_extents():
            stop = max(extent.stop_for(capacity), extent.start)
            if stop < extent.stop:
                extent.discard_end(self._region, stop)

    def _all_extents(self) -> list[_Extent]:
        return [extent for extents in self._extents for extent in extents]


def _reservation(plane: Plane, limit: int) -> int:
    """Bytes for a plane or a band. Large ones start where a huge page may."""
    n_bytes = limit * plane.row_bytes
    return round_up(n_bytes, pages.HUGE_PAGE if n_bytes >= pages.HUGE_PAGE else pages.PAGE)
