"""The ``Memory`` of sequences that live in a context of llama.cpp: our books over its cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from typing_extensions import override

from elastikv.arguments import whole_number
from elastikv.batch import Batch, UBatch, split
from elastikv.errors import CacheFull, InvalidRequest
from elastikv.memory import Budget, MemoryOptions
from elastikv.memory.base import Memory, MemoryStats, SavedSequence, SequenceStats
from elastikv.memory.growth import round_up
from elastikv.runtimes.llama_cpp.context import MOST_SEQUENCES, ContextSize
from elastikv.runtimes.llama_cpp.cost import CELLS
from elastikv.runtimes.llama_cpp.growing import GrowingContext
from elastikv.runtimes.llama_cpp.room import Room
from elastikv.runtimes.llama_cpp.sequences import Checkpoint, Sequence, n_distinct

_SPARSE = 4
"""How many times more cells than are used there have to be, for a context to shrink when a sequence goes."""

_ROOMY = 2
"""The same, where it is asked for on behalf of one sequence."""

_ASIDE = -1
"""The id of a sequence that is being loaded: until it is whole, the one that it replaces keeps what it has."""


class LlamaCppMemory(Memory):
    """All sequences share the cells of one context, whose size follows what they use together.

    name: of the model, for what is saved. Sequences begin at position 0: ``seq_add``, and ``seq_rm`` at the
    front, return False.
    """

    def __init__(
        self, contexts: GrowingContext, options: MemoryOptions, budget: Budget, *, cuts_anywhere: bool, name: str
    ) -> None:
        self.n_ctx = options.n_ctx
        self._contexts = contexts
        self._options = options
        self._budget = budget
        self._cuts_anywhere = cuts_anywhere
        self._name = name
        self._room = Room(contexts, options)
        self._sequences: dict[int, Sequence] = {}
        self._next_cell = 0
        self._before: dict[int, int] | None = None
        """Inside a decode call: how many tokens each of its sequences had."""
        budget.watch(self)

    @property
    def committed_bytes(self) -> int:
        """Of checkpoints; the context's are counted apart."""
        return sum(len(each.state) for sequence in self._sequences.values() for each in sequence.checkpoints)

    # A decode call

    @property
    @override
    def generation(self) -> int:
        return self._contexts.generation

    @property
    @override
    def max_capacity(self) -> int:
        return self._contexts.size.n_cells

    @override
    def init_batch(self, batch: Batch, n_ubatch: int) -> list[UBatch]:
        self._require_idle()
        starts = {entry.seq_id: self.n_tokens(entry.seq_id) for entry in batch.entries}
        for entry in batch.entries:
            if starts[entry.seq_id] + len(entry.token_ids) > self.n_ctx:
                left = self.n_ctx - starts[entry.seq_id]
                raise CacheFull("n_ctx", asked=len(entry.token_ids), left=left, limit=self.n_ctx)
        n_new = len([seq_id for seq_id in starts if seq_id not in self._sequences])
        self._make_room(sum(len(entry.token_ids) for entry in batch.entries), n_new)
        self._before = starts
        return split(batch, starts, min(n_ubatch, self._contexts.now.n_batch))

    @override
    def apply(self, ubatch: UBatch) -> None:
        if self._before is None:
            raise RuntimeError("no decode call is open")
        for span in ubatch.spans:
            sequence = self._sequences.get(span.seq_id) or self._open(span.seq_id)
            cells = np.arange(self._next_cell, self._next_cell + span.n_tokens)
            self._next_cell += span.n_tokens
            sequence.cells = np.concatenate([sequence.cells, cells])

    @override
    def commit(self) -> None:
        self._before = None

    @override
    def rollback(self) -> None:
        self._forget(_ASIDE)
        for seq_id, n_tokens in (self._before or {}).items():
            if seq_id in self._sequences and not self._truncate(seq_id, n_tokens):
                self._forget(seq_id)
        self._before = None

    def number(self, seq_id: int) -> int:
        """What llama.cpp calls a sequence that has been applied."""
        return self._sequences[seq_id].number

    # Operations on sequences

    @override
    def seq_rm(self, seq_id: int, p0: int = 0, p1: int = -1) -> bool:
        self._require_idle()
        n_tokens = self.n_tokens(seq_id)
        start, stop = max(p0, 0), n_tokens if p1 < 0 else min(p1, n_tokens)
        if start >= stop:
            return True
        if stop < n_tokens:
            return start > 0 and self._close_gap(seq_id, start, stop)
        if start == 0:
            self._forget(seq_id)
            self._shrink(_SPARSE)
            return True
        return self._truncate(seq_id, start)

    @override
    def seq_cp(self, src: int, dst: int, p0: int = 0, p1: int = -1) -> bool:
        self._require_idle()
        n_tokens = self.n_tokens(src)
        stop = n_tokens if p1 < 0 else min(p1, n_tokens)
        if src == dst:
            return (max(p0, 0), stop) == (0, n_tokens)
        if max(p0, 0) >= stop:
            self._forget(dst)
            return True
        if p0 > 0 or self.truncation_point(src, stop) != stop:
            return False
        self._make_room(0, dst not in self._sequences)
        source = self._sequences[src]
        self._forget(dst)
        target = self._open(dst)
        self._contexts.now.copy(source.number, target.number, n_tokens if not self._cuts_anywhere else stop)
        target.cells, target.checkpoints = source.cells.copy(), list(source.checkpoints)
        if stop < n_tokens and not self._truncate(dst, stop):
            self._forget(dst)
            return False
        return True

    @override
    def seq_keep(self, seq_id: int) -> None:
        self._require_idle()
        for other in [other for other in self._sequences if other != seq_id]:
            self._forget(other)
        self._shrink(_SPARSE)

    @override
    def seq_add(self, seq_id: int, p0: int, p1: int, delta: int) -> bool:
        self._require_idle()
        n_tokens = self.n_tokens(seq_id)
        return delta == 0 or max(p0, 0) >= (n_tokens if p1 < 0 else min(p1, n_tokens))

    @override
    def seq_pos_min(self, seq_id: int) -> int:
        return 0 if self.seq_pos_max(seq_id) >= 0 else -1

    @override
    def seq_pos_max(self, seq_id: int) -> int:
        sequence = self._sequences.get(seq_id)
        return sequence.n_tokens - 1 if sequence else -1

    @property
    @override
    def cuts_anywhere(self) -> bool:
        return self._cuts_anywhere

    @property
    @override
    def undoes_calls(self) -> bool:
        return self._cuts_anywhere

    @override
    def seq_ids(self) -> list[int]:
        return sorted(seq_id for seq_id, sequence in self._sequences.items() if sequence.n_tokens)

    @override
    def checkpoint(self, seq_id: int) -> bool:
        self._require_idle()
        sequence = self._sequences.get(seq_id)
        if self._cuts_anywhere or sequence is None or not sequence.n_tokens:
            return True
        if any(each.n_tokens == sequence.n_tokens for each in sequence.checkpoints):
            return True
        state = self._contexts.now.sequence_state(sequence.number, partial=True)
        try:
            self._budget.require(len(state))
        except CacheFull:
            return False
        kept = sequence.checkpoints[-(self._options.max_checkpoints - 1) :]
        sequence.checkpoints = [*kept, Checkpoint(sequence.n_tokens, state)]
        return True

    @override
    def truncation_point(self, seq_id: int, p_max: int) -> int:
        sequence = self._sequences.get(seq_id)
        if sequence is None or p_max <= 0:
            return 0
        if self._cuts_anywhere or p_max >= sequence.n_tokens:
            return min(p_max, sequence.n_tokens)
        return max((each.n_tokens for each in sequence.checkpoints if each.n_tokens <= p_max), default=0)

    @property
    @override
    def layout(self) -> Mapping[str, Any]:
        return {"llama.cpp": self._name, "cell_types": [self._options.k_type, self._options.v_type]}

    @override
    def seq_tensors(self, seq_id: int) -> dict[str, torch.Tensor]:
        sequence = self._sequences.get(seq_id)
        if sequence is None:
            return {}
        return {"state": torch.from_numpy(self._contexts.now.sequence_state(sequence.number))}

    @override
    def seq_load(self, seq_id: int, saved: SavedSequence, fill: Callable[[dict[str, torch.Tensor]], None]) -> None:
        self._require_idle()
        shape = saved.shapes.get("state", ())
        if len(shape) != 1 or saved.first:
            raise ValueError("its state is missing or malformed")
        self._budget.require(shape[0])
        state = np.empty(shape[0], dtype=np.uint8)
        fill({"state": torch.from_numpy(state)})
        self._make_room(saved.n_tokens, 1)
        aside = self._open(_ASIDE)
        try:
            self._contexts.now.restore_sequence(aside.number, state)
            if self._contexts.now.last_position(aside.number) != saved.n_tokens - 1:
                raise RuntimeError("its state is not of as many tokens")
        except RuntimeError as error:
            self._forget(_ASIDE)
            raise ValueError(str(error)) from None
        aside.cells = np.arange(self._next_cell, self._next_cell + saved.n_tokens)
        self._next_cell += saved.n_tokens
        self._forget(seq_id)
        self._sequences[seq_id] = self._sequences.pop(_ASIDE)

    @override
    def clear(self) -> None:
        self._before = None
        for seq_id in list(self._sequences):
            self._forget(seq_id)
        self.shrink_to_fit()

    # Sizes

    @override
    def resize(self, n_cells: int, seq_id: int | None = None) -> None:
        self._require_idle()
        n_used = self._n_used()
        if not max(n_used, 1) <= whole_number("n_cells", n_cells) <= self._most_cells():
            raise InvalidRequest(f"n_cells must be in {max(n_used, 1)}..{self._most_cells()}, got {n_cells}")
        self._room.resize(ContextSize(round_up(n_cells, CELLS), self._contexts.size.n_sequences))

    @override
    def shrink_to_fit(self, seq_id: int | None = None) -> int:
        self._require_idle()
        return self._shrink(1 if seq_id is None else _ROOMY)

    @override
    def stats(self) -> MemoryStats:
        now, n_bytes = self._contexts.size, self._contexts.n_bytes.kv
        n_used = self._n_used()
        return MemoryStats(
            capacity_cells=now.n_cells,
            used_cells=n_used,
            committed_bytes=n_bytes + self.committed_bytes,
            reserved_bytes=n_bytes + self.committed_bytes,
            peak_committed_bytes=self._budget.peak_bytes,
            compute_bytes=self._budget.compute_bytes,
            budget_bytes=self._budget.limit_bytes,
            n_resizes=self._room.n_resizes,
            resize_seconds=self._room.seconds,
            sequences=tuple(self._sequence_stats(seq_id, n_bytes) for seq_id in self.seq_ids()),
        )

    @override
    def check(self) -> None:
        numbers = [sequence.number for sequence in self._sequences.values()]
        assert len(set(numbers)) == len(numbers), "two sequences have one number"
        assert self._n_used() <= self.max_capacity, "more cells are used than there are"
        assert all(sequence.n_tokens <= self.n_ctx for sequence in self._sequences.values())

    @override
    def close(self) -> None:
        self._sequences.clear()
        self._contexts.close()

    # The parts

    def _require_idle(self) -> None:
        if self._before is not None:
            raise RuntimeError("a decode call is open: commit() or rollback() first")

    def _n_used(self) -> int:
        return n_distinct([sequence.cells for sequence in self._sequences.values()])

    def _most_cells(self) -> int:
        return round_up(self.n_ctx, CELLS) * max(len(self._sequences), 1)

    def _make_room(self, n_cells: int, n_sequences: int) -> None:
        """For so many more. Raises CacheFull, with nothing changed."""
        n_sequences += len(self._sequences)
        # The sum counts shared cells more than once, but is at hand.
        at_most = sum(sequence.n_tokens for sequence in self._sequences.values()) + n_cells
        if not self._room.has(at_most, n_sequences):
            self._room.require(max(self._n_used() + n_cells, 1), n_sequences)

    def _shrink(self, factor: int) -> int:
        n_sequences = max((sequence.number + 1 for sequence in self._sequences.values()), default=1)
        return self._room.shrink(self._n_used(), n_sequences, factor)

    def _open(self, seq_id: int) -> Sequence:
        taken = {sequence.number for sequence in self._sequences.values()}
        number = next(number for number in range(MOST_SEQUENCES) if number not in taken)
        self._contexts.now.remove(number, -1)  # whatever an interrupted operation left there
        sequence = self._sequences[seq_id] = Sequence(number)
        return sequence

    def _forget(self, seq_id: int) -> None:
        sequence = self._sequences.get(seq_id)
        if sequence is not None:
            self._contexts.forget(sequence.number)
            del self._sequences[seq_id]

    def _truncate(self, seq_id: int, n_tokens: int) -> bool:
        """Go back to ``n_tokens``; False, with nothing changed, if there is no way."""
        sequence, context = self._sequences[seq_id], self._contexts.now
        if n_tokens >= sequence.n_tokens:
            return True
        if n_tokens == 0:
            self._forget(seq_id)
            return True
        if self._cuts_anywhere:
            context.remove(sequence.number, n_tokens)
        else:
            checkpoint = next((each for each in sequence.checkpoints if each.n_tokens == n_tokens), None)
            if checkpoint is None:
                return False
            context.restore_sequence(sequence.number, checkpoint.state, partial=True)
            context.remove(sequence.number, n_tokens)
        sequence.truncate(n_tokens)
        return True

    def _close_gap(self, seq_id: int, start: int, stop: int) -> bool:
        """Remove ``[start, stop)`` and let the rest move down; False where K cannot be rotated, or is shared."""
        sequence, context = self._sequences[seq_id], self._contexts.now
        moving = sequence.cells[stop:]
        others = [other.cells for other in self._sequences.values() if other is not sequence]
        if not self._cuts_anywhere or not context.can_shift or any(np.isin(moving, cells).any() for cells in others):
            return False
        del self._sequences[seq_id]  # until it is whole again
        try:
            context.close_gap(sequence.number, start, stop, sequence.n_tokens)
        except BaseException:
            context.remove(sequence.number, -1)
            raise
        sequence.cells = np.concatenate([sequence.cells[:start], moving])
        self._sequences[seq_id] = sequence
        return True

    def _sequence_stats(self, seq_id: int, n_bytes: int) -> SequenceStats:
        """Its part of the context, by its tokens."""
        used, n_all = self.n_tokens(seq_id), sum(sequence.n_tokens for sequence in self._sequences.values())
        share = n_bytes * used // n_all
        return SequenceStats(seq_id, used, max(self._contexts.size.n_cells * used // n_all, used), share, share)
