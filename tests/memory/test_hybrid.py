from __future__ import annotations

from typing import Any

import pytest
from memory_helpers import KV_LAYERS, RECURRENT_LAYERS, decode, forward, k_and_v, rotate_by_adding, state_sums

from elastikv.batch import Batch, SeqTokens
from elastikv.errors import CacheFull, InvalidRequest
from elastikv.memory import (
    Budget,
    HybridMemory,
    KVCache,
    MemoryOptions,
    RecurrentMemory,
    make_memory,
)
from elastikv.memory.hybrid import halves


def open_memory(budget: Budget | None = None, **options: Any) -> HybridMemory:
    chosen: dict[str, Any] = {"n_ctx": 2000, "growth": "step:8", "initial": 8, "rotate": rotate_by_adding, **options}
    return HybridMemory(KV_LAYERS, RECURRENT_LAYERS, MemoryOptions(**chosen), budget or Budget())


def assert_holds(memory: HybridMemory, seq_id: int, token_ids: list[int]) -> None:
    assert k_and_v(memory.attention, seq_id) == (list(range(len(token_ids))), token_ids)
    assert state_sums(memory.recurrent, seq_id) == {sum(token_ids)}
    memory.check()


def test_a_model_gets_the_memory_it_declares() -> None:
    options = MemoryOptions(n_ctx=10)
    assert isinstance(make_memory(KV_LAYERS, options, Budget()), KVCache)
    assert isinstance(make_memory(RECURRENT_LAYERS, options, Budget()), RecurrentMemory)
    mixed = make_memory([RECURRENT_LAYERS[0], KV_LAYERS[0], RECURRENT_LAYERS[1]], options, Budget())
    assert isinstance(mixed, HybridMemory)
    assert (len(mixed.attention.layers), len(mixed.recurrent.layers)) == (1, 2)
    with pytest.raises(InvalidRequest):
        make_memory([], options, Budget())


def test_each_memory_says_its_halves() -> None:
    options = MemoryOptions(n_ctx=10)
    mixed = open_memory()
    cells, states = make_memory(KV_LAYERS, options, Budget()), make_memory(RECURRENT_LAYERS, options, Budget())
    assert halves(mixed) == (mixed.attention, mixed.recurrent)
    assert halves(cells) == (cells, None)
    assert halves(states) == (None, states)
    with pytest.raises(TypeError, match="dict has neither cells nor states"):
        halves({})  # type: ignore[arg-type]


def test_both_halves_go_together() -> None:
    memory = open_memory()
    decode(memory, {0: range(1, 20), 1: [5]})
    decode(memory, {1: [6, 7], 0: [20]})
    assert_holds(memory, 0, list(range(1, 21)))
    assert_holds(memory, 1, [5, 6, 7])
    stats = memory.stats()
    assert (stats.used_cells, stats.capacity_cells) == (23, 32)
    assert stats.committed_bytes == memory.budget.kv_bytes
    assert memory.max_capacity == 24
    assert (memory.seq_ids(), memory.seq_pos_min(0), memory.seq_pos_max(0)) == ([0, 1], 0, 19)
    spare = stats.committed_bytes - sum(each.committed_bytes for each in stats.sequences)
    assert spare == 2 * 4096  # the two buffers of the next call


def test_rollback_undoes_both_halves() -> None:
    memory = open_memory()
    decode(memory, {0: [1, 2, 3]})
    capacity = memory.stats().capacity_cells
    ubatch = memory.init_batch(Batch([SeqTokens(0, range(50)), SeqTokens(1, [1])]), 20)[0]
    memory.apply(ubatch)
    forward(memory, ubatch)
    memory.rollback()
    assert_holds(memory, 0, [1, 2, 3])
    assert (memory.seq_ids(), memory.stats().capacity_cells) == ([0], capacity)


def test_refused_cells_release_the_states_again() -> None:
    memory = open_memory()
    decode(memory, {0: [1, 2, 3]})
    memory.budget.set_limit(memory.budget.committed_bytes + 40_000)
    for _ in range(2):
        with pytest.raises(CacheFull):
            decode(memory, {0: range(1000), 1: [4]}, n_ubatch=512)
        assert_holds(memory, 0, [1, 2, 3])
    assert memory.seq_ids() == [0]
    decode(memory, {0: [4]})
    assert_holds(memory, 0, [1, 2, 3, 4])


def test_growth_gives_way_to_the_states() -> None:
    probe = open_memory(growth="exact")
    decode(probe, {0: [1]})
    memory = open_memory(Budget(probe.budget.peak_bytes), growth="double:1GiB", initial=2000)
    decode(memory, {0: [1]})
    assert memory.stats().capacity_cells == 1


def test_what_one_half_cannot_do_changes_neither() -> None:
    memory = open_memory()
    decode(memory, {0: range(10)})
    assert not memory.seq_rm(0, 5)
    assert not memory.seq_rm(0, 0, 5)
    assert not memory.seq_add(0, 0, -1, 1)
    assert not memory.seq_cp(0, 1, 0, 5)
    assert not memory.seq_cp(0, 1, 2)
    assert_holds(memory, 0, list(range(10)))
    assert memory.seq_ids() == [0]
    assert memory.truncation_point(0, 9) == 0


def test_both_halves_go_back_to_a_checkpoint() -> None:
    memory = open_memory()
    decode(memory, {0: [1, 2, 3]})
    assert memory.checkpoint(0)
    decode(memory, {0: range(20)})
    assert (memory.truncation_point(0, 22), memory.truncation_point(0, 23)) == (3, 23)
    assert memory.seq_cp(0, 1, 0, 3)
    assert memory.seq_rm(0, 3)
    assert_holds(memory, 0, [1, 2, 3])
    assert_holds(memory, 1, [1, 2, 3])


def test_copies_hold_both_halves() -> None:
    memory = open_memory()
    decode(memory, {0: range(10), 1: [99]})
    assert memory.seq_cp(0, 1)
    decode(memory, {0: [50], 1: [60]})
    assert_holds(memory, 0, [*range(10), 50])
    assert_holds(memory, 1, [*range(10), 60])
    assert memory.seq_cp(0, 0)
    assert memory.seq_cp(5, 1)
    memory.seq_keep(0)
    assert memory.seq_ids() == [0]
    memory.clear()
    assert memory.budget.kv_bytes == 0


@pytest.mark.parametrize("room", [0, 4096, 8192])
def test_a_copy_without_room_for_both_halves_makes_none(room: int) -> None:
    memory = open_memory()
    decode(memory, {0: range(1000), 1: [99]}, n_ubatch=512)
    memory.shrink_to_fit()
    memory.budget.set_limit(memory.budget.committed_bytes + room)
    with pytest.raises(CacheFull):
        memory.seq_cp(0, 1)
    assert_holds(memory, 1, [99])


def test_resize_and_shrink_concern_the_cells() -> None:
    memory = open_memory()
    decode(memory, {0: [1, 2]})
    decode(memory, {0: [3]})
    memory.resize(1000)
    generation = memory.generation
    before = memory.stats().committed_bytes
    assert memory.shrink_to_fit() == before - memory.stats().committed_bytes > 4096
    assert memory.generation != generation
    assert_holds(memory, 0, [1, 2, 3])
    memory.close()
    assert memory.budget.kv_bytes == 0
