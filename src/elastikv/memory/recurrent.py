"""State of fixed size per sequence, for layers that fold the past into it (conv, delta net, SSM).

A decode call writes to a second buffer; the committed one stays untouched until ``commit()``:

                     init_batch        1st ubatch          2nd ubatch         commit
    committed          A                A (source)          A                  B
    working            B (spare)        B (target)          B (both)           -> A is spare

A new sequence has only a working buffer (zeros), since rolling back means forgetting it. Spare
buffers are shared by all sequences. A commit is one store, see ``SequenceStates``.

After a call with a draft A is kept until the sequence's next call: going back to it takes the call back. That copies
nothing, but costs a buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from typing_extensions import override

from elastikv.arguments import whole_number
from elastikv.batch import Batch, UBatch, split
from elastikv.errors import CacheFull, InvalidRequest
from elastikv.memory.base import Memory, MemoryStats, RecurrentLayer, SavedSequence, SequenceStats
from elastikv.memory.budget import Budget
from elastikv.memory.options import MemoryOptions
from elastikv.memory.sequence_states import SequenceState, SequenceStates, WorkingState, clamp
from elastikv.memory.states import LayerState, StateBuffer, StatePool


class RecurrentMemory(Memory):
    """See ``Memory`` for the contract. ``layers`` are the recurrent layers, by their ordinal among these.

    A sequence can only be cut back to where a checkpoint was made, or to before its last call, see above.
    """

    def __init__(self, layers: Sequence[RecurrentLayer], options: MemoryOptions, budget: Budget) -> None:
        self.layers = tuple(layers)
        self.options = options
        self.budget = budget
        self.n_ctx = options.n_ctx
        self._pool = StatePool(self.layers, options.device, budget)
        self._states = SequenceStates(self._pool, options.max_checkpoints)
        self._call: dict[int, WorkingState] | None = None

    @property
    @override
    def generation(self) -> int:
        return self._pool.generation

    @property
    @override
    def max_capacity(self) -> int:
        """No cells, so 0."""
        return 0

    def source(self, layer: int, seq_id: int) -> LayerState:
        """float32 state before the current ubatch; zeros for a new sequence. Only written where it is the target."""
        working, sequence = self._working(seq_id), self._states.of.get(seq_id)
        buffer = sequence.committed if working.span_is_first and sequence else working.buffer
        return buffer.layers[layer]

    def target(self, layer: int, seq_id: int) -> LayerState:
        """Where the state after the current ubatch goes; may be the very tensors of ``source``."""
        return self._working(seq_id).buffer.layers[layer]

    def _working(self, seq_id: int) -> WorkingState:
        assert self._call is not None, "source and target belong between init_batch() and commit()"
        return self._call[seq_id]

    # A decode call

    @override
    def init_batch(self, batch: Batch, n_ubatch: int) -> list[UBatch]:
        self.require_idle()
        ends = {entry.seq_id: self._end(entry.seq_id) for entry in batch.entries}
        for entry in batch.entries:
            end, n_new = ends[entry.seq_id], len(entry.token_ids)
            if end + n_new > self.n_ctx:
                raise CacheFull("n_ctx", asked=n_new, left=self.n_ctx - end, limit=self.n_ctx)
        self._call = {}
        try:
            for entry in batch.entries:
                self._states.forget_previous(entry.seq_id)
                buffer = self._pool.take(zeroed=entry.seq_id not in self._states.of)
                self._call[entry.seq_id] = WorkingState(buffer, keeps_previous=entry.is_draft)
        except BaseException:
            self.rollback()
            raise
        return split(batch, ends, n_ubatch)

    @override
    def apply(self, ubatch: UBatch) -> None:
        if self._call is None:
            raise RuntimeError("apply() belongs between init_batch() and commit()")
        for span in ubatch.spans:
            working, end = self._call[span.seq_id], self._end(span.seq_id)
            assert span.pos == end, f"span at {span.pos}, but the sequence ends at {end}"
            working.span_is_first = working.n_applied == 0
            working.n_applied += span.n_tokens

    @override
    def commit(self) -> None:
        after: dict[int, SequenceState] = {}
        replaced: list[StateBuffer] = []
        for seq_id, working in (self._call or {}).items():
            assert working.n_applied, f"sequence {seq_id} was committed before it was applied"
            before = self._states.of.get(seq_id)
            checkpoints = before.checkpoints if before else {}
            previous = (before.n_tokens, before.committed) if before and working.keeps_previous else None
            after[seq_id] = SequenceState(working.buffer, self._end(seq_id), checkpoints, previous)
            replaced += [before.committed] if before and not previous else []
        self._states.of, self._call = self._states.of | after, None
        for buffer in replaced:
            self._pool.put_aside(buffer)

    @override
    def rollback(self) -> None:
        call, self._call = self._call or {}, None
        for seq_id, working in call.items():
            if seq_id in self._states.of:
                self._pool.put_aside(working.buffer)
            else:
                self._pool.free(working.buffer)

    def require_idle(self) -> None:
        """RuntimeError inside a decode call."""
        if self._call is not None:
            raise RuntimeError("a decode call is open: commit() or rollback() first")

    # Operations on sequences

    def can_seq_rm(self, seq_id: int, p0: int, p1: int) -> bool:
        """Whether ``seq_rm`` would return True: nothing, everything, or back to a point that was kept."""
        sequence = self._states.of.get(seq_id)
        return sequence is None or sequence.can_remove(p0, p1)

    @override
    def seq_rm(self, seq_id: int, p0: int = 0, p1: int = -1) -> bool:
        self.require_idle()
        if not self.can_seq_rm(seq_id, p0, p1):
            return False
        sequence = self._states.of.get(seq_id)
        if sequence is None:
            return True
        start, stop = clamp(p0, p1, sequence.n_tokens)
        if start == 0 and start < stop:
            self._states.forget(seq_id)
        elif start < stop:
            self._states.go_back(seq_id, start)
        return True

    def can_seq_cp(self, src: int, p0: int, p1: int) -> bool:
        """Whether ``seq_cp`` would be possible, given room: from the start, up to the end or such a point."""
        sequence = self._states.of.get(src)
        return sequence is None or sequence.can_copy(p0, p1)

    @override
    def seq_cp(self, src: int, dst: int, p0: int = 0, p1: int = -1) -> bool:
        self.require_idle()
        if not self.can_seq_cp(src, p0, p1):
            return False
        if src == dst:
            return clamp(p0, p1, self._end(src)) == (0, self._end(src))
        self.attach(dst, *self.copy_state(src, p0, p1))
        return True

    def copy_state(self, src: int, p0: int, p1: int) -> tuple[StateBuffer | None, int]:
        """A copy of the state after position ``p1 - 1``, and how many tokens it stands for. CacheFull."""
        return self._states.copy(src, p0, p1)

    def new_state(self) -> StateBuffer:
        """A buffer of no sequence yet; its contents are of no meaning. CacheFull."""
        return self._pool.take()

    def drop_state(self, buffer: StateBuffer | None) -> None:
        """Take back a buffer that was not attached."""
        if buffer is not None:
            self._pool.free(buffer)

    def attach(self, seq_id: int, buffer: StateBuffer | None, n_tokens: int) -> None:
        """Make ``buffer`` the state of a sequence, in place of what it had. Cannot fail."""
        self._states.forget(seq_id)
        if buffer is not None:
            self._states.of[seq_id] = SequenceState(committed=buffer, n_tokens=n_tokens)

    @property
    @override
    def layout(self) -> Mapping[str, Any]:
        return {"recurrent": [layer.shapes for layer in self.layers]}

    @override
    def seq_tensors(self, seq_id: int) -> dict[str, torch.Tensor]:
        sequence = self._states.of.get(seq_id)
        return sequence.committed.tensors() if sequence else {}

    @override
    def seq_load(self, seq_id: int, saved: SavedSequence, fill: Callable[[dict[str, torch.Tensor]], None]) -> None:
        self.require_idle()
        state = self.new_state()
        try:
            fill(state.tensors())
        except BaseException:
            self.drop_state(state)
            raise
        self.attach(seq_id, state, saved.n_tokens)

    @override
    def seq_keep(self, seq_id: int) -> None:
        self.require_idle()
        for other in [other for other in self._states.of if other != seq_id]:
            self._states.forget(other)

    def can_seq_add(self, seq_id: int, p0: int, p1: int, delta: int) -> bool:
        """States know no positions of single tokens, so only what changes nothing works."""
        start, stop = clamp(p0, p1, self._end(seq_id))
        return start >= stop or delta == 0

    @override
    def seq_add(self, seq_id: int, p0: int, p1: int, delta: int) -> bool:
        self.require_idle()
        return self.can_seq_add(seq_id, p0, p1, delta)

    @override
    def seq_pos_min(self, seq_id: int) -> int:
        return 0 if self._end(seq_id) else -1

    @override
    def seq_pos_max(self, seq_id: int) -> int:
        return self._end(seq_id) - 1

    @property
    @override
    def cuts_anywhere(self) -> bool:
        """False: a state cannot be taken apart, so a sequence is cut where a checkpoint was made."""
        return False

    @property
    @override
    def undoes_calls(self) -> bool:
        return True

    @override
    def seq_ids(self) -> list[int]:
        return sorted(seq_id for seq_id in self._held() if self._end(seq_id))

    @override
    def checkpoint(self, seq_id: int) -> bool:
        self.require_idle()
        return self._states.checkpoint(seq_id)

    @override
    def truncation_point(self, seq_id: int, p_max: int) -> int:
        sequence = self._states.of.get(seq_id)
        return sequence.last_point(p_max) if sequence else 0

    @override
    def clear(self) -> None:
        self.rollback()
        for seq_id in list(self._states.of):
            self._states.forget(seq_id)
        self._pool.free_spare()

    # Capacities

    @override
    def resize(self, n_cells: int, seq_id: int | None = None) -> None:
        """States have one size; only the bounds of the request are checked. InvalidRequest."""
        if not 1 <= whole_number("n_cells", n_cells) <= self.n_ctx:
            raise InvalidRequest(f"n_cells must be in 1..{self.n_ctx} (n_ctx), got {n_cells}")

    @override
    def shrink_to_fit(self, seq_id: int | None = None) -> int:
        """Gives back spare buffers, and what the last calls could be taken back with; checkpoints stay."""
        self.require_idle()
        for each in self._states.of:
            self._states.forget_previous(each)
        return self._pool.free_spare()

    @override
    def stats(self) -> MemoryStats:
        sequences = tuple(self._sequence_stats(seq_id) for seq_id in sorted(self._held()))
        committed = self.committed_bytes
        return MemoryStats(
            capacity_cells=0,
            used_cells=0,
            committed_bytes=committed,
            reserved_bytes=committed,
            peak_committed_bytes=self.budget.peak_bytes,
            compute_bytes=self.budget.compute_bytes,
            budget_bytes=self.budget.limit_bytes,
            n_resizes=0,
            resize_seconds=0.0,
            sequences=sequences,
        )

    @property
    def committed_bytes(self) -> int:
        """Of all states, checkpoints and spare buffers."""
        return len(self._buffers()) * self._pool.buffer_bytes

    @override
    def check(self) -> None:
        self.check_parts()
        assert self.budget.kv_bytes >= self.committed_bytes, "the budget does not count all buffers"

    def check_parts(self) -> None:
        """Every invariant but the budget's, which others may share."""
        buffers = self._buffers()
        assert len({id(buffer) for buffer in buffers}) == len(buffers), "a buffer has two owners"
        assert all(buffer.block.committed == self._pool.buffer_bytes for buffer in buffers)
        self._states.check()
        assert all(self._end(seq_id) <= self.n_ctx for seq_id in self._states.of)

    def _sequence_stats(self, seq_id: int) -> SequenceStats:
        sequence = self._states.of.get(seq_id)
        n_buffers = (len(sequence.buffers()) if sequence else 0) + (seq_id in (self._call or {}))
        n_bytes = n_buffers * self._pool.buffer_bytes
        return SequenceStats(seq_id, 0, 0, n_bytes, n_bytes)

    def _held(self) -> set[int]:
        """Sequences that have a buffer."""
        return {*self._states.of, *(self._call or {})}

    def _buffers(self) -> list[StateBuffer]:
        working = [each.buffer for each in (self._call or {}).values()]
        return [*self._pool.spare, *working, *self._states.buffers()]

    def _end(self, seq_id: int) -> int:
        """The position that the sequence's next token gets."""
        sequence, working = self._states.of.get(seq_id), (self._call or {}).get(seq_id)
        return (sequence.n_tokens if sequence else 0) + (working.n_applied if working else 0)
