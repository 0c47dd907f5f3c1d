"""Where cells lie, as kernels ask for it layer after layer: remembered from one resize to the next."""

from __future__ import annotations

import numpy as np

from elastikv.memory.base import Cells
from elastikv.memory.streams import Streams

# Distinct (layer, sequences) combinations remembered between resizes.
_MAX_REMEMBERED = 1 << 14


class CellViews:
    """Views of the streams' cells, and tables of their addresses; valid until ``generation`` changes."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._generation = -1  # that the two tables below are of
        self._cells: dict[tuple[int, int], Cells] = {}
        self._addresses: dict[tuple[int, tuple[int, ...]], np.ndarray] = {}

    def cells(self, layer: int, seq_id: int) -> Cells:
        """One layer of a sequence's cells."""
        self._forget_stale()
        cells = self._cells.get((layer, seq_id))
        if cells is None:
            cells = self._cells[layer, seq_id] = self._streams[seq_id].view(layer)
        return cells

    def addresses(self, layer: int, seq_ids: tuple[int, ...]) -> np.ndarray:
        """See ``KVCache.addresses``."""
        self._forget_stale()
        table = self._addresses.get((layer, seq_ids))
        if table is None:
            if len(self._addresses) >= _MAX_REMEMBERED:
                self._addresses.clear()
            rows = [_address_row(self.cells(layer, seq_id)) for seq_id in seq_ids]
            table = self._addresses[layer, seq_ids] = np.array(rows, dtype=np.int64).reshape(-1, 5)
        return table

    def check(self) -> None:
        """Assert that nothing remembered is stale."""
        self._forget_stale()
        for (layer, seq_id), cells in self._cells.items():
            fresh = self._streams[seq_id].view(layer)
            assert _address_row(fresh) == _address_row(cells), "a remembered address is stale"
            assert fresh.k.shape == cells.k.shape, "a remembered view is stale"

    def _forget_stale(self) -> None:
        if self._generation != self._streams.generation:
            self._generation = self._streams.generation
            self._cells.clear()
            self._addresses.clear()


def _address_row(cells: Cells) -> tuple[int, ...]:
    (k, k_scale), (v, v_scale) = cells.k.addresses(), cells.v.addresses()
    return k, v, k_scale, v_scale, cells.first
