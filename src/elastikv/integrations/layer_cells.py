"""The cells of one attention layer of a batch, in memory that grows in place.

    planes[0]  [batch, heads, capacity, dim]      head 0: row row row ....   head 1: row row row ....

A plane is one band per batch row and head, because torch's attention on the CPU wants the rows of a
head one after the other; with cells outermost it takes up to twice as long.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from elastikv.memory.budget import Budget
from elastikv.memory.storage import Plane, Storage, StorageKind, open_storage


class LayerCells:
    """Rows ``[0, capacity)`` of one or more planes; nothing is committed before ``grow``.

    samples: one tensor ``[batch, heads, any, dim]`` per plane, which gives shape, type and device.
    Types may differ between planes; batch and device may not.
    """

    def __init__(self, samples: Sequence[torch.Tensor], limit: int, kind: StorageKind, budget: Budget) -> None:
        self.budget = budget
        self.kind = kind
        self.limit = limit
        self.batch_size = samples[0].shape[0]
        self._heads = [sample.shape[1] for sample in samples]
        layer = tuple(
            Plane(f"plane{i}", (sample.shape[3],), sample.dtype, bands=sample.shape[0] * sample.shape[1])
            for i, sample in enumerate(samples)
        )
        # Tensors made in inference mode could never be written outside of it.
        with torch.inference_mode(False):
            self.storage: Storage = open_storage(kind, [layer], limit, budget, samples[0].device)
        self._refresh()

    def _refresh(self) -> None:
        with torch.inference_mode(False):
            self.planes = tuple(
                tensor.unflatten(0, (self.batch_size, n_heads))
                for tensor, n_heads in zip(self.storage.tensors(0), self._heads, strict=True)
            )

    @property
    def capacity(self) -> int:
        """Rows that are backed by memory now."""
        return self.storage.capacity

    @property
    def bytes_per_row(self) -> int:
        """Bytes of one row of the whole batch."""
        return sum(plane.n_bands * plane.row_bytes for plane in self.storage.layers[0])

    def accepts(self, samples: Sequence[torch.Tensor]) -> bool:
        """Whether rows of these tensors could be stored here."""
        return all(
            sample.shape[:2] == plane.shape[:2]
            and sample.shape[3] == plane.shape[3]
            and sample.dtype == plane.dtype
            and sample.device == plane.device
            for sample, plane in zip(samples, self.planes, strict=True)
        )

    def set_capacity(self, capacity: int, n_keep: int) -> None:
        """Grow or shrink; rows ``[0, n_keep)`` keep their contents. CacheFull: all is as before."""
        with torch.inference_mode(False):
            if capacity > self.storage.capacity:
                self.storage.grow(capacity, n_keep)
            elif capacity < self.storage.capacity:
                self.storage.shrink(capacity, n_keep)
        self._refresh()

    def write(self, row: int, tensors: Sequence[torch.Tensor]) -> None:
        """Store ``[batch, heads, n, dim]`` per plane from ``row`` on."""
        with torch.no_grad():
            for plane, tensor in zip(self.planes, tensors, strict=True):
                plane[:, :, row : row + tensor.shape[2]] = tensor

    def rows(self, start: int, stop: int) -> tuple[torch.Tensor, ...]:
        """Views ``[batch, heads, stop - start, dim]``."""
        return tuple(plane[:, :, start:stop] for plane in self.planes)

    def move_to_front(self, start: int, stop: int) -> None:
        """Rows ``[start, stop)`` become rows ``[0, stop - start)``.

        Piece by piece, each no longer than the shift, so that source and target never overlap.
        """
        with torch.no_grad():
            for plane in self.planes:
                for first in range(start, stop, start or 1):
                    piece = plane[:, :, first : min(first + start, stop)]
                    plane[:, :, first - start : first - start + piece.shape[2]] = piece

    def reorder(self, batch_index: torch.Tensor, n_used: int) -> None:
        """Batch row ``i`` becomes what row ``batch_index[i]`` was; rows that stay are not touched.

        The budget is asked for the copies that this needs for a moment. CacheFull: nothing changed.
        """
        moved = (batch_index != torch.arange(self.batch_size)).nonzero().flatten()
        if not len(moved) or not n_used:
            return
        n_bytes = n_used * self.bytes_per_row * len(moved) // self.batch_size
        self.budget.require(n_bytes)
        with torch.no_grad():
            for plane in self.planes:
                target, source = moved.to(plane.device), batch_index[moved].to(plane.device)
                plane[target, :, :n_used] = plane[source, :, :n_used]

    def selected(self, batch_index: torch.Tensor, n_used: int) -> LayerCells:
        """New cells whose batch row ``i`` is a copy of row ``batch_index[i]`` here. CacheFull: nothing changed."""
        samples = [plane[:1, :, :0].expand(len(batch_index), -1, -1, -1) for plane in self.planes]
        cells = LayerCells(samples, self.limit, self.kind, self.budget)
        if n_used:
            cells.set_capacity(self.capacity, 0)
            # One batch row at a time: an index over the batch would make a copy of everything first.
            with torch.no_grad():
                for target, source in enumerate(batch_index.tolist()):
                    for new, old in zip(cells.planes, self.planes, strict=True):
                        new[target, :, :n_used] = old[source, :, :n_used]
        return cells

    def close(self) -> None:
        """Give the memory back; tensors that were handed out read zeros or their old contents."""
        self.storage.close()
