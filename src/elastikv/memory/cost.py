"""What a sequence commits, by its length: one model of it, for ``plan``, for admission and for the page.

Exact, pages and windows included, so that it can be compared with what memory says of itself.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Protocol

import torch
from typing_extensions import override

from elastikv.memory.base import KVLayer, LayerMemory, RecurrentLayer
from elastikv.memory.formats import cell_format
from elastikv.memory.growth import parse_growth
from elastikv.memory.options import MemoryOptions
from elastikv.memory.states import state_bytes
from elastikv.memory.storage import bytes_per_row, rows_per_page, storage_type
from elastikv.memory.storage.blocks import committed_size
from elastikv.memory.stream import most_rows_kept, rows_behind


class Cost(Protocol):
    """What a sequence commits, by its length. bytes_per_cell: of a token in all attention layers.

    state_bytes: of a sequence's recurrent states, whatever its length. growth: the policy, as text.
    """

    bytes_per_cell: int
    state_bytes: int
    growth: str

    def n_bytes(self, n_tokens: int, n_cells: int | None = None) -> int:
        """Committed by a sequence of ``n_tokens`` in a stream of ``n_cells`` (None: as many)."""
        ...

    def least_bytes(self, n_tokens: int) -> int:
        """What memory commits at least to a sequence of ``n_tokens``: all of n_ctx where it is not dynamic."""
        ...

    def static_bytes(self) -> int:
        """What a sequence costs where all of n_ctx is committed at once, in every layer."""
        ...

    def n_cells(self, n_tokens: int, n_batch: int) -> int:
        """The capacity of a stream once ``n_tokens`` were appended to it, ``n_batch`` at a time."""
        ...

    def most_tokens(self, n_bytes: int) -> int:
        """How many tokens a sequence may have so that it has never committed more than ``n_bytes``."""
        ...


class MemoryCost(Cost):
    """What sequences commit, computed from a model's layers and the memory options.

    bytes_per_cell: a token in all attention layers. state_bytes: the recurrent states of a sequence, whatever its
    length (a call in progress holds them twice). Raises InvalidRequest for an unknown cell type.
    """

    def __init__(self, layers: Sequence[LayerMemory], options: MemoryOptions) -> None:
        self._options = options
        self._device = torch.device(options.device)
        attention = [layer for layer in layers if isinstance(layer, KVLayer)]
        recurrent = [layer for layer in layers if isinstance(layer, RecurrentLayer)]
        self._windows = [layer.window for layer in attention]
        formats = cell_format(options.k_type), cell_format(options.v_type)
        self._planes = [layer.planes(*formats) for layer in attention]
        self.bytes_per_cell = bytes_per_row(self._planes)
        self.state_bytes = committed_size(state_bytes(recurrent), self._device)
        self.growth = options.growth or storage_type(options.storage, self._device).default_growth

    @override
    def n_bytes(self, n_tokens: int, n_cells: int | None = None) -> int:
        n_cells = n_tokens if n_cells is None else n_cells
        is_dynamic = self._options.dynamic
        return self._sum([(n_cells, rows_behind(window, n_tokens) * is_dynamic) for window in self._windows])

    @override
    def least_bytes(self, n_tokens: int) -> int:
        return self.n_bytes(n_tokens) if self._options.dynamic else self.static_bytes()

    @override
    def static_bytes(self) -> int:
        return self._sum([(self._options.n_ctx, 0)] * len(self._windows))

    @override
    def n_cells(self, n_tokens: int, n_batch: int) -> int:
        if not self._options.dynamic:
            return self._options.n_ctx
        return parse_growth(self.growth).capacity_after_fill(
            n_tokens,
            initial=self._options.initial,
            n_ctx=self._options.n_ctx,
            bytes_per_cell=max(self.bytes_per_cell, 1),
            page_cells=rows_per_page(self._planes) if self._planes else 1,
            n_batch=n_batch,
        )

    @override
    def most_tokens(self, n_bytes: int) -> int:
        if not self._options.dynamic:
            return self._options.n_ctx if self.static_bytes() <= n_bytes else 0
        return max(bisect.bisect_right(range(self._options.n_ctx + 1), n_bytes, key=self._most_bytes) - 1, 0)

    def _most_bytes(self, n_tokens: int) -> int:
        """The most that a sequence has committed on its way to ``n_tokens``."""
        return self._sum([(most_rows_kept(window, n_tokens), 0) for window in self._windows])

    def _sum(self, rows: Sequence[tuple[int, int]]) -> int:
        """Per attention layer: rows, and how many of them at the front were given back."""
        cells = sum(
            committed_size(n_rows * plane.row_bytes, self._device, n_behind * plane.row_bytes)
            for planes, (n_rows, n_behind) in zip(self._planes, rows, strict=True)
            for plane in planes
        )
        return cells + self.state_bytes
