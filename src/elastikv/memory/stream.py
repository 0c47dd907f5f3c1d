"""The attention memory of one sequence: bookkeeping (``StreamCells``) and bytes (``Storage``) together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from elastikv.memory.base import Cells, KVLayer, SavedSequence, SequenceStats
from elastikv.memory.cells import StreamCells
from elastikv.memory.formats import CellFormat, CellTensor
from elastikv.memory.options import RotateK
from elastikv.memory.storage import Storage

# Rows that are moved or rotated at once: bounds the memory that a context shift needs.
_CHUNK = 1024

# Windows give back pages this many rows at a time, not one by one.
_WINDOW_STEP = 256


def rows_behind(window: int | None, n_tokens: int) -> int:
    """Rows at the front that a sequence of ``n_tokens`` gives back: behind the window, in whole steps."""
    return 0 if window is None else max(n_tokens - window + 1, 0) // _WINDOW_STEP * _WINDOW_STEP


def most_rows_kept(window: int | None, n_tokens: int) -> int:
    """The most rows that a sequence has held on its way to ``n_tokens``, one token at a time."""
    return n_tokens if window is None else min(n_tokens, window + _WINDOW_STEP - 2)


class Stream:
    """Cells ``[0, used)`` hold consecutive positions in every layer.

    Layers with a window may have given their first rows back; then only positions whose windows
    are still whole can become the end.
    """

    def __init__(self, layers: Sequence[KVLayer], formats: tuple[CellFormat, CellFormat], storage: Storage) -> None:
        """formats: of K and of V; storage: of the planes that ``KVLayer.planes`` gives."""
        self.cells = StreamCells()
        self.storage = storage
        self._formats = formats
        self._layers = tuple(layers)
        self._windows = [(index, layer.window) for index, layer in enumerate(layers) if layer.window]

    @property
    def capacity(self) -> int:
        """Cells that are backed by memory."""
        return self.storage.capacity

    def view(self, layer: int) -> Cells:
        """The cells of a layer as they lie now; valid until a capacity or the first position changes."""
        names = (plane.name for plane in self.storage.layers[layer])
        tensors = dict(zip(names, self.storage.tensors(layer), strict=True))

        def part(name: str, cell_format: CellFormat, dim: int) -> CellTensor:
            n_heads = self._layers[layer].n_kv_heads
            planes = tuple(tensors[plane.name] for plane in cell_format.planes(name, n_heads, dim))
            return CellTensor(cell_format, n_heads, dim, planes)

        k_format, v_format = self._formats
        k = part("k", k_format, self._layers[layer].head_dim)
        return Cells(k, part("v", v_format, self._layers[layer].head_dim_v), self.cells.first)

    def set_capacity(self, capacity: int) -> None:
        """Grow or shrink to ``capacity`` cells. Growing raises CacheFull if refused, with nothing changed."""
        if capacity > self.storage.capacity:
            self.storage.grow(capacity, self.cells.used)
        elif capacity < self.storage.capacity:
            self.storage.shrink(capacity, self.cells.used)

    def can_end_at(self, row: int) -> bool:
        """Whether the cells from ``row`` on can go and the sequence can still be continued there."""
        return all(self.storage.released(layer) <= max(row - window + 1, 0) for layer, window in self._windows)

    def can_remove(self, r0: int, r1: int) -> bool:
        """Whether ``remove`` would work; rows can move only where no layer has given any back."""
        if r1 == self.cells.used:
            return self.can_end_at(r0)
        return not self._has_released()

    def can_shift(self) -> bool:
        """Whether all of K is still there to be rotated."""
        return not self._has_released()

    def remove(self, r0: int, r1: int, rotate: RotateK | None) -> None:
        """Every removal of cells goes through here: tail, front and middle.

        In the middle, cells behind move down and are rotated to their new positions by ``rotate``. Whoever
        interrupts that finds a sequence that ends before the gap.
        """
        after = self.cells.copy()
        after.remove(r0, r1)
        used, self.cells.used = self.cells.used, min(r0, self.cells.used)
        n_behind = used - r1
        if n_behind and r0 < r1:
            for layer in range(len(self._layers)):
                if r0 and rotate:
                    self._rotate(layer, r1, used, r0 - r1, rotate)
                for tensor in self.storage.tensors(layer):
                    _move_down(tensor, r1, r0, n_behind)
        self.cells = after

    def shift(self, delta: int, rotate: RotateK) -> None:
        """Move all positions by ``delta``. Whoever interrupts that finds an empty sequence."""
        after = replace(self.cells, first=self.cells.first + delta)
        self.cells.used = 0
        for layer in range(len(self._layers)):
            self._rotate(layer, 0, after.used, delta, rotate)
        self.cells = after

    def copy_into(self, other: Stream, r0: int, r1: int) -> None:
        """Make ``other``, an empty stream of enough capacity, hold cells ``[r0, r1)`` of this one."""
        for layer in range(len(self._layers)):
            start = max(self.storage.released(layer), r0)
            for source, target in zip(self.storage.tensors(layer), other.storage.tensors(layer), strict=True):
                target[start - r0 : r1 - r0].copy_(source[start:r1])
            other.storage.release_front(layer, start - r0)
        other.cells.first = self.cells.first + r0
        other.cells.append(r1 - r0)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The rows in use that no layer has given back, by the name of layer and plane, as views."""
        return {
            f"attention.{layer}.{plane.name}": tensor[self.storage.released(layer) : self.cells.used]
            for layer, planes in enumerate(self.storage.layers)
            for plane, tensor in zip(planes, self.storage.tensors(layer), strict=True)
        }

    def begin_as(self, saved: SavedSequence) -> None:
        """Be, with nothing in it yet, like a saved stream: its positions, and what its windows have given back.

        Raises ValueError if no stream can be so.
        """
        n_cells = saved.n_tokens - saved.first
        for layer in range(len(self._layers)):
            n_rows = next(iter(saved.shapes.get(f"attention.{layer}.k", ())), None)
            if n_rows is None or not 0 <= n_rows <= n_cells:
                raise ValueError(f"layer {layer} holds {n_rows} rows for {n_cells} cells")
            self.storage.release_front(layer, n_cells - n_rows)
        self.cells.first = saved.first
        self.cells.append(n_cells)
        if not self.can_end_at(n_cells):
            raise ValueError("rows inside a window are missing")

    def release_windows(self) -> None:
        """Give back the pages that no later token can see."""
        for layer, window in self._windows:
            self.storage.release_front(layer, rows_behind(window, self.cells.used))

    def stats(self, seq_id: int) -> SequenceStats:
        """Cells and bytes held now, reported as those of ``seq_id``."""
        return SequenceStats(
            seq_id=seq_id,
            used_cells=self.cells.used,
            capacity_cells=self.capacity,
            committed_bytes=self.storage.committed_bytes,
            reserved_bytes=self.storage.reserved_bytes,
        )

    def check(self) -> None:
        """Raise AssertionError if an invariant does not hold."""
        self.cells.check()
        self.storage.check()
        assert self.cells.used <= self.capacity, f"{self.cells.used} cells used of {self.capacity}"
        for layer, window in self._windows:
            assert self.storage.released(layer) <= max(self.cells.used - window + 1, 0), "a needed row was given back"

    def _has_released(self) -> bool:
        return any(self.storage.released(layer) for layer, _ in self._windows)

    def _rotate(self, layer: int, r0: int, r1: int, delta: int, rotate: RotateK) -> None:
        k = self.view(layer).k
        for start in range(r0, r1, _CHUNK):
            rows = slice(start, min(start + _CHUNK, r1))
            k.store(rows, rotate(layer, k.load(rows), delta))


def _move_down(tensor: torch.Tensor, source: int, target: int, n_rows: int) -> None:
    """Overlapping rows move in order and by way of a copy, so none is overwritten before it was read."""
    for start in range(0, n_rows, _CHUNK):
        n = min(_CHUNK, n_rows - start)
        tensor[target + start : target + start + n] = tensor[source + start : source + start + n].clone()
