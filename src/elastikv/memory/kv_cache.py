"""Attention memory: one stream of cells per sequence, each as large as it needs to be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from elastikv.batch import Batch, UBatch, split
from elastikv.errors import CacheFull
from elastikv.memory.base import Cells, KVLayer, Memory, MemoryStats, SavedSequence
from elastikv.memory.budget import Budget
from elastikv.memory.cell_views import CellViews
from elastikv.memory.cells import StreamCells
from elastikv.memory.options import MemoryOptions
from elastikv.memory.stream import Stream
from elastikv.memory.streams import Streams


class KVCache(Memory):
    """Attention memory. Methods that take ``layer`` count the attention layers only.

    layers: what their cells look like; options: cell types, growth, limit; budget: what streams are charged to.
    """

    def __init__(self, layers: Sequence[KVLayer], options: MemoryOptions, budget: Budget) -> None:
        self.layers = tuple(layers)
        self.options = options
        self.budget = budget
        self.n_ctx = options.n_ctx
        self._streams = Streams(self.layers, options, budget)
        self._views = CellViews(self._streams)
        self.k_format, self.v_format = self._streams.formats
        self.bytes_per_cell = self._streams.bytes_per_cell
        # Cells used and capacity of the sequences of an open call, as they were; None: no stream.
        self._before_call: dict[int, tuple[int, int] | None] | None = None

    # What kernels ask, per layer and token

    @property
    @override
    def generation(self) -> int:
        return self._streams.generation

    @property
    @override
    def max_capacity(self) -> int:
        return max((self._streams.capacity(seq_id) for seq_id in self._streams.ids()), default=0)

    def cells(self, layer: int, seq_id: int) -> Cells:
        """One layer of a sequence's cells; valid until ``generation`` changes. KeyError if it has no stream."""
        return self._views.cells(layer, seq_id)

    def addresses(self, layer: int, seq_ids: tuple[int, ...]) -> np.ndarray:
        """int64 ``[len(seq_ids), 5]``: addresses of k, v, the second planes of k and v (0: none), and ``first``.

        Valid until ``generation`` changes; not to be written to.
        """
        return self._views.addresses(layer, seq_ids)

    def n_cells(self, seq_id: int) -> int:
        """Cells that a sequence uses; 0 if it has no stream."""
        return self._streams.cells(seq_id).used

    # A decode call

    @override
    def init_batch(self, batch: Batch, n_ubatch: int) -> list[UBatch]:
        self.require_idle()
        next_pos = {entry.seq_id: self._streams.cells(entry.seq_id).end for entry in batch.entries}
        ubatches = split(batch, next_pos, n_ubatch)
        self._before_call = {entry.seq_id: self._extent_of(entry.seq_id) for entry in batch.entries}
        try:
            needed = self.prepare(ubatches)
            if needed:
                self.try_resize(needed)
                needed = self.prepare(ubatches)
                assert not needed, f"streams are still too small after a resize: {needed}"
        except BaseException:
            self.rollback()
            raise
        return ubatches

    def prepare(self, ubatches: Iterable[UBatch]) -> dict[int, int]:
        """Simulate the ubatches on copies of the bookkeeping.

        Returns the cells that streams would need but lack, by sequence: empty if all fit.
        """
        simulated: dict[int, StreamCells] = {}
        for ubatch in ubatches:
            for span in ubatch.spans:
                cells = simulated.setdefault(span.seq_id, self._streams.cells(span.seq_id).copy())
                cells.append(span.n_tokens)
        return {
            seq_id: cells.used for seq_id, cells in simulated.items() if cells.used > self._streams.capacity(seq_id)
        }

    def try_resize(self, needed: Mapping[int, int]) -> None:
        """Enlarge streams to hold ``needed[seq_id]`` cells; new sequences get a stream.

        The growth policy says how large; if that is refused, less is asked for, down to what is needed. Raises
        CacheFull; all streams are as before then.
        """
        for seq_id, n_needed in needed.items():
            if n_needed > self.n_ctx:
                used = self.n_cells(seq_id)
                raise CacheFull("n_ctx", asked=n_needed - used, left=self.n_ctx - used, limit=self.n_ctx)
        self._streams.enlarge(needed)

    @override
    def apply(self, ubatch: UBatch) -> None:
        if self._before_call is None:
            raise RuntimeError("apply() belongs between init_batch() and commit()")
        for span in ubatch.spans:
            cells = self._streams[span.seq_id].cells
            assert span.pos == cells.end, f"span at {span.pos}, but the sequence ends at {cells.end}"
            cells.append(span.n_tokens)

    @override
    def commit(self) -> None:
        touched, self._before_call = self._before_call or {}, None
        if self.options.dynamic:
            for seq_id in touched:
                self._streams[seq_id].release_windows()

    @override
    def rollback(self) -> None:
        for seq_id, before in (self._before_call or {}).items():
            if before is None:
                self._streams.close(seq_id)
            else:
                self._streams.restore(seq_id, *before)
        self._before_call = None

    def require_idle(self) -> None:
        """Raise RuntimeError inside a decode call."""
        if self._before_call is not None:
            raise RuntimeError("a decode call is open: commit() or rollback() first")

    # Operations on sequences

    def can_seq_rm(self, seq_id: int, p0: int, p1: int) -> bool:
        """Whether ``seq_rm`` would return True."""
        stream = self._streams.get(seq_id)
        if stream is None:
            return True
        r0, r1 = stream.cells.rows(p0, p1)
        if r0 == r1 or r1 - r0 == stream.cells.used:
            return True
        is_middle = r0 > 0 and r1 < stream.cells.used
        return stream.can_remove(r0, r1) and (not is_middle or self.options.rotate is not None)

    @override
    def seq_rm(self, seq_id: int, p0: int = 0, p1: int = -1) -> bool:
        self.require_idle()
        if not self.can_seq_rm(seq_id, p0, p1):
            return False
        stream = self._streams.get(seq_id)
        if stream is None:
            return True
        r0, r1 = stream.cells.rows(p0, p1)
        if r1 - r0 == stream.cells.used:
            self._streams.close(seq_id)
        elif r0 < r1:
            self._streams.touch()
            stream.remove(r0, r1, self.options.rotate)
        return True

    def can_seq_cp(self, src: int, p0: int, p1: int) -> bool:
        """Whether ``seq_cp`` would be possible, given room."""
        stream = self._streams.get(src)
        return stream is None or stream.can_end_at(stream.cells.rows(p0, p1)[1])

    @override
    def seq_cp(self, src: int, dst: int, p0: int = 0, p1: int = -1) -> bool:
        self.require_idle()
        if not self.can_seq_cp(src, p0, p1):
            return False
        if src == dst:
            cells = self._streams.cells(src)
            return cells.rows(p0, p1) == (0, cells.used)
        self.attach(dst, self.copy_stream(src, p0, p1))
        return True

    def copy_stream(self, src: int, p0: int, p1: int) -> Stream | None:
        """A new stream with a copy of positions ``[p0, p1)`` of ``src``; None if none is held. Raises CacheFull."""
        source = self._streams.get(src)
        if source is None:
            return None
        r0, r1 = source.cells.rows(p0, p1)
        if r0 == r1:
            return None
        stream = self.new_stream(r1 - r0)
        source.copy_into(stream, r0, r1)
        return stream

    def new_stream(self, n_cells: int) -> Stream:
        """A stream of no sequence yet, with room for ``n_cells``. Raises CacheFull."""
        return self._streams.open(n_cells)

    def attach(self, seq_id: int, stream: Stream | None) -> None:
        """Make ``stream`` the memory of a sequence, in place of what it had. Cannot fail."""
        if stream is None:
            self._streams.close(seq_id)
        else:
            self._streams.attach(seq_id, stream)

    def saved_stream(self, saved: SavedSequence) -> Stream:
        """A stream of no sequence yet, for the tensors of a saved one. Raises CacheFull, ValueError."""
        stream = self.new_stream(saved.n_tokens - saved.first)
        try:
            stream.begin_as(saved)
        except BaseException:
            stream.storage.close()
            raise
        return stream

    @property
    @override
    def layout(self) -> Mapping[str, Any]:
        return {
            "cell_types": [self.k_format.name, self.v_format.name],
            "attention": [[each.n_kv_heads, each.head_dim, each.head_dim_v, each.window] for each in self.layers],
        }

    @override
    def seq_tensors(self, seq_id: int) -> dict[str, torch.Tensor]:
        stream = self._streams.get(seq_id)
        return stream.tensors() if stream else {}

    @override
    def seq_load(self, seq_id: int, saved: SavedSequence, fill: Callable[[dict[str, torch.Tensor]], None]) -> None:
        self.require_idle()
        stream = self.saved_stream(saved)
        try:
            fill(stream.tensors())
        except BaseException:
            stream.storage.close()
            raise
        self.attach(seq_id, stream)

    @override
    def seq_keep(self, seq_id: int) -> None:
        self.require_idle()
        for other in self._streams.ids():
            if other != seq_id:
                self._streams.close(other)

    @override
    def seq_add(self, seq_id: int, p0: int, p1: int, delta: int) -> bool:
        self.require_idle()
        stream = self._streams.get(seq_id)
        if stream is None or delta == 0:
            return True
        r0, r1 = stream.cells.rows(p0, p1)
        if r0 == r1:
            return True
        is_whole = r1 - r0 == stream.cells.used and stream.cells.first + delta >= 0
        if not is_whole or self.options.rotate is None or not stream.can_shift():
            return False
        self._streams.touch()
        stream.shift(delta, self.options.rotate)
        return True

    @override
    def seq_pos_min(self, seq_id: int) -> int:
        cells = self._streams.cells(seq_id)
        return cells.first if cells.used else -1

    @override
    def seq_pos_max(self, seq_id: int) -> int:
        cells = self._streams.cells(seq_id)
        return cells.end - 1 if cells.used else -1

    @property
    @override
    def cuts_anywhere(self) -> bool:
        return True

    @property
    @override
    def undoes_calls(self) -> bool:
        return True

    @override
    def seq_ids(self) -> list[int]:
        return [seq_id for seq_id in self._streams.ids() if self.n_cells(seq_id)]

    @override
    def checkpoint(self, seq_id: int) -> bool:
        return True

    @override
    def truncation_point(self, seq_id: int, p_max: int) -> int:
        stream = self._streams.get(seq_id)
        if stream is None or p_max <= stream.cells.first:
            return 0
        p0 = min(p_max, stream.cells.end)
        return p0 if stream.can_end_at(p0 - stream.cells.first) else 0

    @override
    def clear(self) -> None:
        for seq_id in self._streams.ids():
            self._streams.close(seq_id)
        self._before_call = None

    # Capacities

    @override
    def resize(self, n_cells: int, seq_id: int | None = None) -> None:
        self.require_idle()
        self._streams.resize(n_cells, self._streams.ids() if seq_id is None else [seq_id])

    @override
    def shrink_to_fit(self, seq_id: int | None = None) -> int:
        self.require_idle()
        return self._streams.shrink_to_fit(self._streams.ids() if seq_id is None else [seq_id])

    @property
    def committed_bytes(self) -> int:
        """Bytes of all streams that are backed by memory now."""
        return self._streams.committed_bytes

    @override
    def stats(self) -> MemoryStats:
        sequences = tuple(self._streams[seq_id].stats(seq_id) for seq_id in self._streams.ids())
        return MemoryStats(
            capacity_cells=sum(each.capacity_cells for each in sequences),
            used_cells=sum(each.used_cells for each in sequences),
            committed_bytes=sum(each.committed_bytes for each in sequences),
            reserved_bytes=sum(each.reserved_bytes for each in sequences),
            peak_committed_bytes=self.budget.peak_bytes,
            compute_bytes=self.budget.compute_bytes,
            budget_bytes=self.budget.limit_bytes,
            n_resizes=self._streams.n_resizes,
            resize_seconds=self._streams.resize_seconds,
            sequences=sequences,
        )

    @override
    def check(self) -> None:
        self.check_parts()
        assert self.budget.kv_bytes >= self.committed_bytes, "the budget does not count all that is committed"

    def check_parts(self) -> None:
        """``check`` without the budget's, which other memory may share."""
        self._streams.check()
        self._views.check()

    def _extent_of(self, seq_id: int) -> tuple[int, int] | None:
        stream = self._streams.get(seq_id)
        return (stream.cells.used, stream.capacity) if stream else None
