from __future__ import annotations

from typing import Any

import pytest
import torch
from memory_helpers import RECURRENT_LAYERS, decode, forward, state_sums

from elastikv.batch import Batch, SeqTokens
from elastikv.errors import CacheFull, InvalidRequest
from elastikv.memory import Budget, MemoryOptions, RecurrentLayer, RecurrentMemory


def open_memory(budget: Budget | None = None, **options: Any) -> RecurrentMemory:
    chosen: dict[str, Any] = {"n_ctx": 100, **options}
    return RecurrentMemory(RECURRENT_LAYERS, MemoryOptions(**chosen), budget or Budget())


def test_state_follows_every_ubatch_of_a_call() -> None:
    memory = open_memory()
    decode(memory, {0: range(1, 11), 1: [7]}, n_ubatch=4)
    assert (state_sums(memory, 0), state_sums(memory, 1)) == ({55}, {7})
    decode(memory, {1: [1, 2], 0: [45]}, n_ubatch=2)
    assert (state_sums(memory, 0), state_sums(memory, 1)) == ({100}, {10})
    assert (memory.seq_pos_min(0), memory.seq_pos_max(0), memory.seq_ids()) == (0, 10, [0, 1])
    memory.check()


def test_committed_state_is_untouched_until_commit() -> None:
    memory = open_memory()
    decode(memory, {0: [1, 2, 3]})
    for ubatch in memory.init_batch(Batch([SeqTokens(0, range(50)), SeqTokens(1, [5])]), 4)[:3]:
        memory.apply(ubatch)
        forward(memory, ubatch)
        assert state_sums(memory, 0) == {6}
        memory.check()
    memory.rollback()
    memory.check()
    assert (state_sums(memory, 0), memory.seq_ids(), memory.seq_pos_max(0)) == ({6}, [0], 2)
    decode(memory, {0: [4]})
    assert state_sums(memory, 0) == {10}


def test_a_new_sequence_starts_from_zero_even_in_a_used_buffer() -> None:
    memory = open_memory()
    decode(memory, {0: [5]})
    decode(memory, {0: [5]})  # leaves a spare buffer
    decode(memory, {1: [3]})
    assert state_sums(memory, 1) == {3}


def test_tensors_have_the_declared_shapes() -> None:
    memory = open_memory()
    memory.apply(memory.init_batch(Batch([SeqTokens(0, [1])]), 4)[0])
    assert [tensor.shape for tensor in memory.source(0, 0)] == [(3, 2), (2, 4, 4)]
    assert [tensor.shape for tensor in memory.target(1, 0)] == [(5,)]
    assert all(tensor.data_ptr() % 64 == 0 for tensor in memory.target(0, 0))


def test_buffers_are_charged_reused_and_given_back() -> None:
    memory = open_memory()
    one = 4096
    decode(memory, {0: [1]})
    assert memory.budget.kv_bytes == one
    for _ in range(5):
        decode(memory, {0: [1]})
        assert memory.budget.kv_bytes == 2 * one
    assert memory.shrink_to_fit() == one
    assert memory.stats().committed_bytes == memory.budget.kv_bytes == one
    memory.seq_rm(0)
    assert memory.budget.kv_bytes == 0


def draft(memory: RecurrentMemory, seq_id: int, tokens: list[int]) -> None:
    """A decode call whose tokens may be guesses."""
    for ubatch in memory.init_batch(Batch([SeqTokens(seq_id, tokens, is_draft=True)]), 2):
        memory.apply(ubatch)
        forward(memory, ubatch)
    memory.commit()


def test_a_call_with_a_draft_can_be_taken_back_until_the_next() -> None:
    memory = open_memory()
    decode(memory, {0: [1, 2]})
    draft(memory, 0, [3, 4, 5])
    assert memory.stats().sequences[0].committed_bytes == memory.budget.kv_bytes == 2 * 4096, "no more than in a call"
    assert [memory.truncation_point(0, n) for n in (5, 4, 2, 1)] == [5, 2, 2, 0]
    assert not memory.seq_rm(0, 4)
    assert memory.seq_cp(0, 1, 0, 2)
    assert memory.seq_rm(0, 2)
    memory.check()
    assert (state_sums(memory, 0), state_sums(memory, 1)) == ({3}, {3})
    draft(memory, 0, [6, 7])
    decode(memory, {0: [8]})
    assert memory.truncation_point(0, 4) == 0
    draft(memory, 0, [9, 9])
    assert memory.shrink_to_fit() == 4096
    assert memory.truncation_point(0, 6) == 0
    assert state_sums(memory, 0) == {3 + 6 + 7 + 8 + 9 + 9}
    memory.check()


def test_a_call_is_taken_back_across_checkpoints() -> None:
    memory = open_memory(max_checkpoints=4)
    decode(memory, {0: [1]})
    memory.checkpoint(0)
    decode(memory, {0: [2]})
    memory.checkpoint(0)
    draft(memory, 0, [3, 4])
    memory.checkpoint(0)
    assert memory.seq_rm(0, 2)
    memory.check()
    assert [memory.truncation_point(0, n) for n in (4, 2, 1)] == [2, 2, 1]
    assert state_sums(memory, 0) == {3}
    draft(memory, 0, [5, 6])
    assert memory.seq_rm(0, 1), "a checkpoint before the call"
    memory.check()
    assert state_sums(memory, 0) == {1}
    decode(memory, {0: [7]})
    assert state_sums(memory, 0) == {8}
    memory.seq_rm(0)
    assert memory.budget.kv_bytes == 0


def test_refused_buffers_leave_every_sequence_as_it_was() -> None:
    memory = open_memory(Budget(3 * 4096))
    decode(memory, {0: [1], 1: [2]})
    with pytest.raises(CacheFull) as refusal:
        decode(memory, {0: [1], 1: [1]})
    assert refusal.value.asked == 4096
    memory.check()
    with pytest.raises(CacheFull):
        decode(memory, {2: [1], 3: [1]})
    memory.check()
    assert (state_sums(memory, 0), state_sums(memory, 1), memory.seq_ids()) == ({1}, {2}, [0, 1])


def test_an_allocation_that_fails_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("none left")

    memory = open_memory()
    monkeypatch.setattr("elastikv.memory.states.allocate_block", fail)
    with pytest.raises(CacheFull) as refusal:
        decode(memory, {0: [1]})
    assert refusal.value.resource == "machine"
    assert memory.budget.kv_bytes == 0


def test_n_ctx_holds() -> None:
    memory = open_memory(n_ctx=5)
    decode(memory, {0: [1, 2, 3]})
    with pytest.raises(CacheFull) as refusal:
        decode(memory, {0: [1, 2, 3]})
    assert (refusal.value.resource, refusal.value.left) == ("n_ctx", 2)
    with pytest.raises(InvalidRequest):
        memory.resize(6)


def test_a_part_cannot_be_cut_out_of_a_state() -> None:
    memory = open_memory()
    decode(memory, {0: range(10)})
    assert not memory.seq_rm(0, 5)
    assert not memory.seq_rm(0, 0, 5)
    assert not memory.seq_rm(0, 3, 5)
    assert not memory.seq_add(0, 0, -1, 1)
    assert memory.seq_rm(0, 10)
    assert state_sums(memory, 0) == {45}
    assert memory.seq_rm(0, 0, 10)
    assert memory.seq_ids() == []


def test_checkpoints_are_where_a_sequence_can_go_back_to() -> None:
    memory = open_memory()
    decode(memory, {0: [1, 2, 3]})
    assert memory.checkpoint(0)
    decode(memory, {0: [4]})
    assert memory.checkpoint(0)
    decode(memory, {0: [5]})
    assert [memory.truncation_point(0, p_max) for p_max in (2, 3, 4, 5, 9)] == [0, 3, 4, 5, 5]
    assert memory.seq_rm(0, 3)
    memory.check()
    assert (state_sums(memory, 0), memory.seq_pos_max(0)) == ({6}, 2)
    assert memory.truncation_point(0, 9) == 3
    decode(memory, {0: [10]})
    assert state_sums(memory, 0) == {16}
    assert memory.seq_rm(0, 3)
    assert state_sums(memory, 0) == {6}


def test_states_made_in_inference_mode_can_be_written_outside_of_it() -> None:
    memory = open_memory()
    with torch.inference_mode():
        decode(memory, {0: [1, 2, 3]})
        memory.checkpoint(0)
        decode(memory, {0: [4]})
    assert memory.seq_rm(0, 3)
    assert state_sums(memory, 0) == {6}


def test_checkpoints_are_bounded_and_the_oldest_go_first() -> None:
    memory = open_memory(max_checkpoints=2)
    for _ in range(4):
        decode(memory, {0: [1]})
        assert memory.checkpoint(0)
        assert memory.checkpoint(0)
    memory.check()
    assert [memory.truncation_point(0, p_max) for p_max in (1, 2, 3, 4)] == [0, 0, 3, 4]
    assert memory.seq_rm(0, 3)
    assert state_sums(memory, 0) == {3}


def test_a_checkpoint_without_room_is_refused() -> None:
    memory = open_memory(Budget(4096))
    decode(memory, {0: [1]})
    assert not memory.checkpoint(0)
    memory.check()
    assert not open_memory_with_one(max_checkpoints=0).checkpoint(0)


def open_memory_with_one(**options: Any) -> RecurrentMemory:
    memory = open_memory(**options)
    decode(memory, {0: [1]})
    return memory


def test_copies_reach_to_the_end_or_to_a_checkpoint() -> None:
    memory = open_memory()
    decode(memory, {0: [1, 2, 3]})
    memory.checkpoint(0)
    decode(memory, {0: [4]})
    assert memory.seq_cp(0, 1)
    assert memory.seq_cp(0, 2, 0, 3)
    assert not memory.seq_cp(0, 3, 0, 2)
    assert not memory.seq_cp(0, 3, 1)
    decode(memory, {1: [5], 0: [6]})
    assert [state_sums(memory, seq_id) for seq_id in (0, 1, 2)] == [{16}, {15}, {6}]
    assert memory.seq_cp(9, 1)
    assert memory.seq_ids() == [0, 2]
    memory.seq_keep(2)
    assert memory.seq_ids() == [2]
    memory.check()
    memory.clear()
    assert memory.budget.kv_bytes == 0


def test_calls_are_transactions() -> None:
    memory = open_memory()
    memory.init_batch(Batch([SeqTokens(0, [1])]), 4)
    for operation in (memory.seq_rm, memory.checkpoint, memory.shrink_to_fit, memory.seq_keep):
        with pytest.raises(RuntimeError, match="decode call is open"):
            operation(0)
    memory.rollback()
    ubatch = memory.init_batch(Batch([SeqTokens(0, [1])]), 4)[0]
    memory.rollback()
    with pytest.raises(RuntimeError, match="between"):
        memory.apply(ubatch)


def test_states_of_many_layers_lie_in_one_block() -> None:
    memory = RecurrentMemory([RecurrentLayer(((1000, 3), (16, 128, 128)))] * 4, MemoryOptions(n_ctx=10), Budget())
    decode(memory, {0: [1]})
    expected = 4 * 4 * (3000 + 16 * 128 * 128)
    assert expected <= memory.stats().committed_bytes < expected * 1.01
