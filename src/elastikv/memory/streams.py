"""The streams of all sequences, and how their capacities change: all that are asked for, or none."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from elastikv.arguments import whole_number
from elastikv.errors import CacheFull, InvalidRequest
from elastikv.memory.base import KVLayer
from elastikv.memory.budget import Budget
from elastikv.memory.cells import StreamCells
from elastikv.memory.formats import cell_format
from elastikv.memory.growth import offers, parse_growth
from elastikv.memory.options import MemoryOptions, ResizeEvent
from elastikv.memory.storage import StorageKind, bytes_per_row, open_storage
from elastikv.memory.stream import Stream

CapacityChange = tuple[Stream, int]


class Streams:
    """Opens, resizes and closes streams. ``generation`` changes with every capacity and every address."""

    def __init__(self, layers: Sequence[KVLayer], options: MemoryOptions, budget: Budget) -> None:
        self._layers = tuple(layers)
        self.formats = cell_format(options.k_type), cell_format(options.v_type)
        self._planes = [layer.planes(*self.formats) for layer in layers]
        self._options = options
        self._budget = budget
        self._growth = parse_growth(options.growth) if options.growth else None
        self._storage: StorageKind = options.storage
        self._streams: dict[int, Stream] = {}
        self.bytes_per_cell = bytes_per_row(self._planes)
        self.generation = 0
        self.n_resizes = 0
        self.resize_seconds = 0.0

    def __getitem__(self, seq_id: int) -> Stream:
        return self._streams[seq_id]

    def get(self, seq_id: int) -> Stream | None:
        """The stream of a sequence, None if it has none."""
        return self._streams.get(seq_id)

    def ids(self) -> list[int]:
        """Sequences that have a stream, used or not, ascending."""
        return sorted(self._streams)

    def cells(self, seq_id: int) -> StreamCells:
        """The bookkeeping of a sequence; of an empty one if it has no stream."""
        stream = self._streams.get(seq_id)
        return stream.cells if stream else StreamCells()

    def capacity(self, seq_id: int) -> int:
        """Cells of a sequence that are backed by memory; 0 if it has no stream."""
        stream = self._streams.get(seq_id)
        return stream.capacity if stream else 0

    @property
    def committed_bytes(self) -> int:
        """Bytes of all streams that are backed by memory now."""
        return sum(stream.storage.committed_bytes for stream in self._streams.values())

    def open(self, n_cells: int) -> Stream:
        """A stream of no sequence yet, with room for ``n_cells``. Raises CacheFull."""
        if n_cells > self._options.n_ctx:
            raise CacheFull("n_ctx", asked=n_cells, left=self._options.n_ctx, limit=self._options.n_ctx)
        stream = self._reserve()
        try:
            _change_all([(stream, self._exact_capacity(n_cells))], self._budget, self._options.device)
        except BaseException:
            stream.storage.close()
            raise
        return stream

    def attach(self, seq_id: int, stream: Stream) -> None:
        """Make an open stream the memory of a sequence, in place of what it had. Cannot fail."""
        self.close(seq_id)
        self._streams[seq_id] = stream

    def close(self, seq_id: int) -> None:
        """Give a sequence's stream back, if it has one."""
        self.touch()
        stream = self._streams.pop(seq_id, None)
        if stream is not None:
            stream.storage.close()

    def touch(self) -> None:
        """Invalidate the views of cells that were handed out.

        Called before something changes, for what follows may be interrupted; nobody asks in the middle.
        """
        self.generation += 1

    def restore(self, seq_id: int, n_used: int, n_cells: int) -> None:
        """Back to a length and a capacity that the stream had before; smaller, so that it cannot fail."""
        self.touch()
        stream = self._streams.get(seq_id)
        if stream is not None:
            stream.remove(n_used, stream.cells.used, None)
            stream.set_capacity(n_cells)

    def enlarge(self, needed: Mapping[int, int]) -> None:
        """Give each sequence a stream of at least ``needed[seq_id]`` cells: what the policy says, or less if refused.

        Raises CacheFull; every stream is as before then.
        """
        streams = self._streams_for(needed)
        wanted = [self._policy_capacity(stream, needed[seq_id]) for seq_id, stream in streams.items()]
        least = list(needed.values()) if self._options.dynamic else wanted
        for capacities in offers(least, wanted, lambda: self._n_spare(streams, least)):
            try:
                self._set_capacities(streams, capacities)
                return
            except CacheFull:
                if capacities == least:
                    raise

    def resize(self, n_cells: int, seq_ids: Sequence[int]) -> None:
        """Set the capacity of sequences to ``n_cells``, all or none; those without a stream get one.

        Raises InvalidRequest below what is used or not in ``1 .. n_ctx``, CacheFull if there is no room.
        """
        n_cells = whole_number("n_cells", n_cells)
        for seq_id in seq_ids:
            used = self.cells(seq_id).used
            if n_cells < used:
                raise InvalidRequest(f"sequence {seq_id} uses {used} cells; it cannot be resized to {n_cells}")
        if not 1 <= n_cells <= self._options.n_ctx:
            raise InvalidRequest(f"n_cells must be in 1..{self._options.n_ctx} (n_ctx), got {n_cells}")
        self._set_exactly(dict.fromkeys(seq_ids, n_cells))

    def shrink_to_fit(self, seq_ids: Sequence[int]) -> int:
        """Give back all cells that are not in use; returns the bytes."""
        before = self.committed_bytes
        for seq_id in seq_ids:
            used = self.cells(seq_id).used
            if used:
                self._set_exactly({seq_id: used})
            else:
                self.close(seq_id)
        return before - self.committed_bytes

    def check(self) -> None:
        """Raise AssertionError if an invariant does not hold."""
        for seq_id, stream in self._streams.items():
            stream.check()
            capacity = stream.capacity
            assert capacity <= self._options.n_ctx, f"sequence {seq_id} is larger than n_ctx"
            assert self._options.dynamic or capacity == self._options.n_ctx, "a static stream was resized"

    def _reserve(self) -> Stream:
        storage = open_storage(self._storage, self._planes, self._options.n_ctx, self._budget, self._options.device)
        self._storage = storage.name  # a fallback is decided, and reported, once
        return Stream(self._layers, self.formats, storage)

    def _streams_for(self, seq_ids: Iterable[int]) -> dict[int, Stream]:
        """The stream of each sequence, or a new one that is not its memory yet."""
        return {seq_id: self._streams.get(seq_id) or self._reserve() for seq_id in seq_ids}

    def _set_exactly(self, n_cells: Mapping[int, int]) -> None:
        """Set capacities by sequence, all or none. Raises CacheFull."""
        capacities = [self._exact_capacity(n) for n in n_cells.values()]
        self._set_capacities(self._streams_for(n_cells), capacities)

    def _set_capacities(self, streams: Mapping[int, Stream], capacities: Sequence[int]) -> None:
        """Change all or (CacheFull) none; streams become the memory of their sequences."""
        started = time.perf_counter()
        self.touch()
        before = {seq_id: stream.capacity for seq_id, stream in streams.items()}
        try:
            _change_all(list(zip(streams.values(), capacities, strict=True)), self._budget, self._options.device)
            self._streams |= streams
        except BaseException:
            for seq_id, stream in streams.items():
                if seq_id not in self._streams:
                    stream.set_capacity(0)
            raise
        self._record(before, time.perf_counter() - started)

    def _n_spare(self, streams: Mapping[int, Stream], needed: Sequence[int]) -> int:
        """Cells that each of the streams could have beyond ``needed``."""
        n_bytes = self._budget.left(self._options.device) - _peak_bytes(
            list(zip(streams.values(), needed, strict=True))
        )
        return max(n_bytes, 0) // self.bytes_per_cell // len(streams)

    def _exact_capacity(self, n_cells: int) -> int:
        return n_cells if self._options.dynamic else self._options.n_ctx

    def _policy_capacity(self, stream: Stream, n_cells: int) -> int:
        if not self._options.dynamic:
            return self._options.n_ctx
        growth = self._growth or parse_growth(stream.storage.default_growth)
        return growth.capacity_for(
            n_cells,
            stream.capacity,
            initial=self._options.initial,
            n_ctx=self._options.n_ctx,
            bytes_per_cell=self.bytes_per_cell,
            page_cells=stream.storage.page_rows,
        )

    def _record(self, before: Mapping[int, int], seconds: float) -> None:
        self.resize_seconds += seconds
        for seq_id, old_cells in before.items():
            new_cells = self._streams[seq_id].capacity
            if old_cells == new_cells:
                continue
            self.n_resizes += old_cells > 0  # the first capacity is no resize
            if self._options.on_resize:
                event = ResizeEvent(seq_id, old_cells, new_cells, self.committed_bytes, seconds / len(before))
                self._options.on_resize(event)


def _change_all(changes: Sequence[CapacityChange], budget: Budget, pool: str) -> None:
    """Growths come first, after the budget agreed to all of them; what undoes them, a shrink, cannot fail."""
    budget.require(_peak_bytes(changes), pool)
    grown: list[CapacityChange] = []
    try:
        for stream, capacity in changes:
            if capacity > stream.capacity:
                grown.append((stream, stream.capacity))
                stream.set_capacity(capacity)
    except BaseException:
        for stream, before in reversed(grown):
            stream.set_capacity(before)
        raise
    for stream, capacity in changes:
        stream.set_capacity(capacity)


def _peak_bytes(changes: Sequence[CapacityChange]) -> int:
    """Most bytes on top of what is committed while the growths run one after the other."""
    added = peak = 0
    for stream, capacity in changes:
        if capacity > stream.capacity:
            peak = max(peak, added + stream.storage.peak_bytes(capacity))
            added += stream.storage.added_bytes(capacity)
    return peak
