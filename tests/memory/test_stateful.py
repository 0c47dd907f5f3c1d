"""Random operations on memories of both kinds and both storages, beside a reference model of plain lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from memory_helpers import (
    KV_LAYERS,
    RECURRENT_LAYERS,
    attention_of,
    decode,
    forward,
    k_and_v,
    recurrent_of,
    rotate_by_adding,
    state_sums,
)

from elastikv.batch import Batch, SeqTokens
from elastikv.errors import CacheFull, InvalidRequest
from elastikv.memory import Budget, LayerMemory, MemoryOptions, make_memory
from elastikv.memory.storage import pages

N_CTX = 400
SEQ_IDS = st.integers(0, 3)
TOKENS = st.lists(st.integers(0, 50), min_size=1, max_size=120)
POSITIONS = st.integers(0, N_CTX)


class _Reference:
    """A sequence as it should be: the first position, the token ids, and the ends that can be returned to."""

    def __init__(self, token_ids: Sequence[int] = (), first: int = 0) -> None:
        self.token_ids = list(token_ids)
        self.first = first
        self.checkpoints: set[int] = set()

    @property
    def end(self) -> int:
        return self.first + len(self.token_ids)

    def rows(self, p0: int, p1: int) -> tuple[int, int]:
        held = [
            row for row in range(len(self.token_ids)) if p0 <= self.first + row and (p1 < 0 or self.first + row < p1)
        ]
        return (held[0], held[-1] + 1) if held else (0, 0)


class MemoryMachine(RuleBasedStateMachine):
    layers: Sequence[LayerMemory] = KV_LAYERS
    storage = "copy"

    @initialize(
        growth=st.sampled_from(["step:16", "double:64KiB", "exact"]),
        budget=st.sampled_from([120_000, 400_000, 4_000_000]),
        cell_type=st.sampled_from(["f32", "f16", "q8_0"]),
    )
    def open(self, growth: str, budget: int, cell_type: str) -> None:
        options: dict[str, Any] = {"storage": self.storage, "k_type": cell_type, "v_type": cell_type}
        self.memory = make_memory(
            self.layers,
            MemoryOptions(n_ctx=N_CTX, growth=growth, initial=8, rotate=rotate_by_adding, max_checkpoints=2, **options),
            Budget(budget),
        )
        self.is_hybrid = recurrent_of(self.memory) is not None
        self.sequences: dict[int, _Reference] = {}

    @rule(tokens=st.dictionaries(SEQ_IDS, TOKENS, min_size=1), n_ubatch=st.integers(1, 200))
    def decode(self, tokens: dict[int, list[int]], n_ubatch: int) -> None:
        if self._changes_nothing_if_refused(lambda: decode(self.memory, tokens, n_ubatch)):
            for seq_id, token_ids in tokens.items():
                self.sequences.setdefault(seq_id, _Reference()).token_ids += token_ids

    @rule(tokens=st.dictionaries(SEQ_IDS, TOKENS, min_size=1), n_applied=st.integers(0, 3))
    def fail_in_forward(self, tokens: dict[int, list[int]], n_applied: int) -> None:
        before = self.memory.stats().sequences
        batch = Batch(SeqTokens(seq_id, token_ids) for seq_id, token_ids in tokens.items())
        try:
            ubatches = self.memory.init_batch(batch, 16)
        except CacheFull:
            return
        for ubatch in ubatches[:n_applied]:
            self.memory.apply(ubatch)
            forward(self.memory, ubatch)
        self.memory.rollback()
        assert [(each.seq_id, each.used_cells, each.capacity_cells) for each in before] == [
            (each.seq_id, each.used_cells, each.capacity_cells) for each in self.memory.stats().sequences
        ]

    @rule(tokens=st.dictionaries(SEQ_IDS, TOKENS, min_size=1), fail_at=st.integers(0, 5))
    def fail_to_allocate(self, tokens: dict[int, list[int]], fail_at: int) -> None:
        left = [fail_at]
        commit = pages.Region.commit

        def failing_commit(region: pages.Region, start: int, stop: int) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise MemoryError("none left")
            commit(region, start, stop)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pages.Region, "commit", failing_commit)
            self.decode(tokens, 64)

    @rule(seq_id=SEQ_IDS, p0=POSITIONS, p1=st.one_of(st.just(-1), POSITIONS))
    def seq_rm(self, seq_id: int, p0: int, p1: int) -> None:
        sequence = self.sequences.get(seq_id)
        r0, r1 = sequence.rows(p0, p1) if sequence else (0, 0)
        expected = self._can_remove(sequence, r0, r1)
        assert self.memory.seq_rm(seq_id, p0, p1) == expected
        if not sequence or not expected or r0 == r1:
            return
        if r0 == 0 and r1 < len(sequence.token_ids):
            sequence.first += r1
        del sequence.token_ids[r0:r1]
        sequence.checkpoints = {point for point in sequence.checkpoints if point <= sequence.end}
        if not sequence.token_ids:
            del self.sequences[seq_id]

    @rule(src=SEQ_IDS, dst=SEQ_IDS, p0=st.sampled_from([0, 0, 3]), p1=st.one_of(st.just(-1), POSITIONS))
    def seq_cp(self, src: int, dst: int, p0: int, p1: int) -> None:
        source = self.sequences.get(src)
        r0, r1 = source.rows(p0, p1) if source else (0, 0)
        whole = bool(source) and (r0, r1) == (0, len(source.token_ids))
        possible = r0 == r1 or not self.is_hybrid or whole or (r0 == 0 and source and r1 in source.checkpoints)
        if src == dst:
            possible = whole or not source
        copied: list[bool] = []
        if not self._changes_nothing_if_refused(lambda: copied.append(self.memory.seq_cp(src, dst, p0, p1))):
            return
        assert copied == [bool(possible)]
        if possible and src != dst:
            self.sequences.pop(dst, None)
            if source and r0 < r1:
                self.sequences[dst] = _Reference(source.token_ids[r0:r1], source.first + r0)

    @rule(seq_id=SEQ_IDS, delta=st.integers(-20, 20))
    def seq_add(self, seq_id: int, delta: int) -> None:
        sequence = self.sequences.get(seq_id)
        possible = not sequence or delta == 0 or (not self.is_hybrid and sequence.first + delta >= 0)
        assert self.memory.seq_add(seq_id, 0, -1, delta) == possible
        if sequence and possible:
            sequence.first += delta

    @rule(seq_id=SEQ_IDS)
    def checkpoint(self, seq_id: int) -> None:
        sequence = self.sequences.get(seq_id)
        if not self.memory.checkpoint(seq_id) or not sequence or sequence.end in sequence.checkpoints:
            return
        if len(sequence.checkpoints) == 2:
            sequence.checkpoints.remove(min(sequence.checkpoints))
        sequence.checkpoints.add(sequence.end)

    @rule(n_cells=st.integers(1, N_CTX + 10), seq_id=st.one_of(st.none(), SEQ_IDS))
    def resize(self, n_cells: int, seq_id: int | None) -> None:
        if not self._changes_nothing_if_refused(lambda: self.memory.resize(n_cells, seq_id)):
            return
        for each in self.memory.stats().sequences:
            if seq_id in (None, each.seq_id):
                assert each.capacity_cells == n_cells

    @rule(seq_id=st.one_of(st.none(), SEQ_IDS))
    def shrink_to_fit(self, seq_id: int | None) -> None:
        before = self.memory.stats().committed_bytes
        assert before - self.memory.shrink_to_fit(seq_id) == self.memory.stats().committed_bytes
        for each in self.memory.stats().sequences:
            if seq_id in (None, each.seq_id):
                assert each.capacity_cells == each.used_cells > 0

    @rule(seq_id=SEQ_IDS)
    def seq_keep(self, seq_id: int) -> None:
        self.memory.seq_keep(seq_id)
        self.sequences = {kept: sequence for kept, sequence in self.sequences.items() if kept == seq_id}

    @rule()
    def clear(self) -> None:
        self.memory.clear()
        self.sequences.clear()
        assert self.memory.budget.kv_bytes == 0

    @rule(n_bytes=st.sampled_from([50_000, 150_000, 400_000, 4_000_000]))
    def set_budget(self, n_bytes: int) -> None:
        self.memory.budget.set_limit(n_bytes)

    @invariant()
    def holds_what_it_should(self) -> None:
        if not hasattr(self, "memory"):
            return
        self.memory.check()
        assert list(self.memory.seq_ids()) == sorted(self.sequences)
        attention, recurrent = attention_of(self.memory), recurrent_of(self.memory)
        for seq_id, sequence in self.sequences.items():
            assert self.memory.seq_pos_min(seq_id) == sequence.first
            assert self.memory.seq_pos_max(seq_id) == sequence.end - 1
            if attention:
                assert k_and_v(attention, seq_id) == (list(range(sequence.first, sequence.end)), sequence.token_ids)
            if recurrent:
                assert state_sums(recurrent, seq_id) == {sum(sequence.token_ids)}
                points = [*sequence.checkpoints, sequence.end]
                assert self.memory.truncation_point(seq_id, sequence.end) == max(points)
                assert self.memory.truncation_point(seq_id, sequence.end - 1) == max(
                    (point for point in points if point < sequence.end), default=0
                )

    def teardown(self) -> None:
        if hasattr(self, "memory"):
            self.memory.close()
            assert self.memory.budget.kv_bytes == 0

    def _can_remove(self, sequence: _Reference | None, r0: int, r1: int) -> bool:
        if not sequence or r0 == r1 or not self.is_hybrid:
            return True
        at_end = r1 == len(sequence.token_ids)
        return at_end and (r0 == 0 or r0 in sequence.checkpoints)

    def _changes_nothing_if_refused(self, operation: Callable[[], object]) -> bool:
        """True if the operation ran. Contents after a refusal are the invariant's business."""
        before = [(each.seq_id, each.used_cells, each.capacity_cells) for each in self.memory.stats().sequences]
        try:
            operation()
        except (CacheFull, InvalidRequest):
            after = [(each.seq_id, each.used_cells, each.capacity_cells) for each in self.memory.stats().sequences]
            assert after == before
            return False
        return True


def _test_case(layers: Sequence[LayerMemory], storage: str) -> Any:
    machine = type("Machine", (MemoryMachine,), {"layers": layers, "storage": storage})
    case = machine.TestCase
    case.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
    return case


TestAttentionOnCopy = _test_case(KV_LAYERS, "copy")
TestAttentionOnMmap = _test_case(KV_LAYERS, "mmap")
TestHybridOnCopy = _test_case([*KV_LAYERS, *RECURRENT_LAYERS], "copy")
TestHybridOnMmap = _test_case([*KV_LAYERS, *RECURRENT_LAYERS], "mmap")
