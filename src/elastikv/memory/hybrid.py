"""Attention memory and recurrent memory as one, by composition.

An operation that one half cannot do changes neither: both are asked first, and what may be refused
for lack of room is made aside before anything is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from typing_extensions import override

from elastikv.batch import Batch, UBatch
from elastikv.memory.base import KVLayer, Memory, MemoryStats, RecurrentLayer, SavedSequence, SequenceStats
from elastikv.memory.budget import Budget
from elastikv.memory.kv_cache import KVCache
from elastikv.memory.options import MemoryOptions
from elastikv.memory.recurrent import RecurrentMemory


class Halves(NamedTuple):
    """Where the attention layers of a model remember, and where its recurrent ones; None where it has none of them."""

    attention: KVCache | None
    recurrent: RecurrentMemory | None


def halves(memory: Memory) -> Halves:
    """The parts of a memory that ``make_memory`` made. TypeError for any other, which has cells of its own kind."""
    if isinstance(memory, HybridMemory):
        return Halves(memory.attention, memory.recurrent)
    if isinstance(memory, KVCache):
        return Halves(memory, None)
    if isinstance(memory, RecurrentMemory):
        return Halves(None, memory)
    raise TypeError(f"a {type(memory).__name__} has neither cells nor states of ours")


class HybridMemory(Memory):
    """See ``Memory`` for the contract. Only ``attention`` resizes."""

    def __init__(
        self,
        kv_layers: Sequence[KVLayer],
        recurrent_layers: Sequence[RecurrentLayer],
        options: MemoryOptions,
        budget: Budget,
    ) -> None:
        self.attention = KVCache(kv_layers, options, budget)
        self.recurrent = RecurrentMemory(recurrent_layers, options, budget)
        self.budget = budget
        self.n_ctx = options.n_ctx
        self._is_decided = False

    @property
    @override
    def generation(self) -> int:
        return self.attention.generation + self.recurrent.generation

    @property
    @override
    def max_capacity(self) -> int:
        return self.attention.max_capacity

    @override
    def init_batch(self, batch: Batch, n_ubatch: int) -> list[UBatch]:
        # The states first: their size is fixed, while growth can give way to what is left.
        self.recurrent.init_batch(batch, n_ubatch)
        self._is_decided = False
        try:
            return self.attention.init_batch(batch, n_ubatch)
        except BaseException:
            self.recurrent.rollback()
            raise

    @override
    def apply(self, ubatch: UBatch) -> None:
        self.attention.apply(ubatch)
        self.recurrent.apply(ubatch)

    @override
    def commit(self) -> None:
        self._is_decided = True  # from here on an interrupted call is finished, not undone
        self.attention.commit()
        self.recurrent.commit()
        self._is_decided = False

    @override
    def rollback(self) -> None:
        if self._is_decided:
            self.commit()
        self.attention.rollback()
        self.recurrent.rollback()
        self._reconcile()

    @override
    def seq_rm(self, seq_id: int, p0: int = 0, p1: int = -1) -> bool:
        if not (self.attention.can_seq_rm(seq_id, p0, p1) and self.recurrent.can_seq_rm(seq_id, p0, p1)):
            return False
        return self.attention.seq_rm(seq_id, p0, p1) and self.recurrent.seq_rm(seq_id, p0, p1)

    @override
    def seq_cp(self, src: int, dst: int, p0: int = 0, p1: int = -1) -> bool:
        self.attention.require_idle()
        if not (self.attention.can_seq_cp(src, p0, p1) and self.recurrent.can_seq_cp(src, p0, p1)):
            return False
        if src == dst:
            return self.attention.seq_cp(src, dst, p0, p1)
        state, n_tokens = self.recurrent.copy_state(src, p0, p1)
        try:
            stream = self.attention.copy_stream(src, p0, p1)
        except BaseException:
            self.recurrent.drop_state(state)
            raise
        self.recurrent.attach(dst, state, n_tokens)
        self.attention.attach(dst, stream)
        return True

    @override
    def seq_keep(self, seq_id: int) -> None:
        self.attention.seq_keep(seq_id)
        self.recurrent.seq_keep(seq_id)

    @override
    def seq_add(self, seq_id: int, p0: int, p1: int, delta: int) -> bool:
        if not self.recurrent.can_seq_add(seq_id, p0, p1, delta):
            return False
        return self.attention.seq_add(seq_id, p0, p1, delta)

    @override
    def seq_pos_min(self, seq_id: int) -> int:
        return self.attention.seq_pos_min(seq_id)

    @override
    def seq_pos_max(self, seq_id: int) -> int:
        return self.attention.seq_pos_max(seq_id)

    @property
    @override
    def cuts_anywhere(self) -> bool:
        """Whether both halves can be cut at any token."""
        return self.attention.cuts_anywhere and self.recurrent.cuts_anywhere

    @property
    @override
    def undoes_calls(self) -> bool:
        """Whether both halves can."""
        return self.attention.undoes_calls and self.recurrent.undoes_calls

    @override
    def seq_ids(self) -> list[int]:
        return self.attention.seq_ids()

    @override
    def checkpoint(self, seq_id: int) -> bool:
        return self.recurrent.checkpoint(seq_id)

    @override
    def truncation_point(self, seq_id: int, p_max: int) -> int:
        """Both halves must be able to go back to the same point."""
        point = self.recurrent.truncation_point(seq_id, p_max)
        while point and self.attention.truncation_point(seq_id, point) != point:
            point = self.recurrent.truncation_point(seq_id, point - 1)
        return point

    @property
    @override
    def layout(self) -> Mapping[str, Any]:
        return {**self.attention.layout, **self.recurrent.layout}

    @override
    def seq_tensors(self, seq_id: int) -> dict[str, torch.Tensor]:
        return {**self.attention.seq_tensors(seq_id), **self.recurrent.seq_tensors(seq_id)}

    @override
    def seq_load(self, seq_id: int, saved: SavedSequence, fill: Callable[[dict[str, torch.Tensor]], None]) -> None:
        self.recurrent.require_idle()
        state, stream = self.recurrent.new_state(), None
        try:
            stream = self.attention.saved_stream(saved)
            fill({**stream.tensors(), **state.tensors()})
        except BaseException:
            if stream:
                stream.storage.close()
            self.recurrent.drop_state(state)
            raise
        self.attention.attach(seq_id, stream)
        self.recurrent.attach(seq_id, state, saved.n_tokens)

    @override
    def clear(self) -> None:
        self._is_decided = False
        self.attention.clear()
        self.recurrent.clear()

    @override
    def resize(self, n_cells: int, seq_id: int | None = None) -> None:
        self.attention.resize(n_cells, seq_id)

    @override
    def shrink_to_fit(self, seq_id: int | None = None) -> int:
        return self.attention.shrink_to_fit(seq_id) + self.recurrent.shrink_to_fit(seq_id)

    @override
    def stats(self) -> MemoryStats:
        stats, states = self.attention.stats(), self.recurrent.stats()
        of_state = {each.seq_id: each for each in states.sequences}
        return replace(
            stats,
            committed_bytes=stats.committed_bytes + states.committed_bytes,
            reserved_bytes=stats.reserved_bytes + states.reserved_bytes,
            sequences=tuple(_with_state(each, of_state.get(each.seq_id)) for each in stats.sequences),
        )

    @override
    def check(self) -> None:
        self.attention.check_parts()
        self.recurrent.check_parts()
        assert self.attention.seq_ids() == self.recurrent.seq_ids(), "the halves hold different sequences"
        for seq_id in self.seq_ids():
            assert self.attention.seq_pos_max(seq_id) == self.recurrent.seq_pos_max(seq_id)
        committed = self.attention.committed_bytes + self.recurrent.committed_bytes
        assert self.budget.kv_bytes >= committed, "the budget does not count all that is committed"

    def _reconcile(self) -> None:
        """An operation that was interrupted between the halves: what they disagree about is forgotten."""
        for seq_id in {*self.attention.seq_ids(), *self.recurrent.seq_ids()}:
            if self.attention.seq_pos_max(seq_id) != self.recurrent.seq_pos_max(seq_id):
                self.attention.seq_rm(seq_id)
                self.recurrent.seq_rm(seq_id)


def _with_state(stream: SequenceStats, state: SequenceStats | None) -> SequenceStats:
    if state is None:
        return stream
    return replace(
        stream,
        committed_bytes=stream.committed_bytes + state.committed_bytes,
        reserved_bytes=stream.reserved_bytes + state.reserved_bytes,
    )
