from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from memory_helpers import KV_LAYERS, decode, forward, k_and_v, rotate_by_adding

from elastikv.batch import Batch, SeqTokens
from elastikv.errors import CacheFull, InvalidRequest
from elastikv.memory import Budget, KVCache, KVLayer, MemoryOptions, ResizeEvent

STORAGES = pytest.mark.parametrize("storage", ["mmap", "copy"])
CELL_TYPES = pytest.mark.parametrize("cell_type", ["f32", "f16", "bf16", "q8_0"])


def open_cache(storage: str = "copy", budget: Budget | None = None, **options: Any) -> KVCache:
    chosen: dict[str, Any] = {"n_ctx": 100, "growth": "step:8", "initial": 8, "rotate": rotate_by_adding, **options}
    return KVCache(KV_LAYERS, MemoryOptions(storage=storage, **chosen), budget or Budget())  # type: ignore[arg-type]


def assert_holds(cache: KVCache, seq_id: int, positions: list[int], token_ids: list[int]) -> None:
    assert k_and_v(cache, seq_id) == (positions, token_ids)
    cache.check()


@STORAGES
def test_a_refused_policy_gives_way_step_by_step_and_not_cell_by_cell(storage: str) -> None:
    """The budget is too small for what the policy likes: 400 tokens more take a few resizes, and as many fit."""
    layers = [KVLayer(4, 64, 64)] * 4
    budget = Budget(5 * 700 * 1024)  # of 4 KiB a cell; a copy needs a layer more while it grows

    def fill(growth: str) -> KVCache:
        cache = KVCache(layers, MemoryOptions(4096, growth=growth, storage=storage), budget)  # type: ignore[arg-type]
        decode(cache, {0: range(256)})
        with contextlib.suppress(CacheFull):
            for token in range(4096):
                decode(cache, {0: [token]})
        return cache

    exact = fill("exact")
    n_cells, n_resizes = exact.n_cells(0), exact.stats().n_resizes
    exact.close()
    cache = fill("double:1GiB")
    assert cache.n_cells(0) == n_cells > 256 + 400
    assert cache.stats().n_resizes <= 12 < n_resizes // 4
    cache.check()


@STORAGES
@CELL_TYPES
def test_sequences_of_unequal_length_grow_on_their_own(storage: str, cell_type: str) -> None:
    cache = open_cache(storage, k_type=cell_type, v_type=cell_type)
    decode(cache, {3: range(1, 31), 0: [5]})
    decode(cache, {0: [6, 7], 3: [31]})
    assert_holds(cache, 3, list(range(31)), list(range(1, 32)))
    assert_holds(cache, 0, [0, 1, 2], [5, 6, 7])
    stats = cache.stats()
    assert [(each.seq_id, each.used_cells, each.capacity_cells) for each in stats.sequences] == [(0, 3, 8), (3, 31, 32)]
    assert (stats.used_cells, stats.capacity_cells, stats.n_resizes) == (34, 40, 0)
    assert (cache.max_capacity, cache.seq_ids()) == (32, [0, 3])


def test_prepare_simulates_only() -> None:
    cache = open_cache()
    decode(cache, {0: range(6)})
    batch = Batch([SeqTokens(0, range(5)), SeqTokens(1, [1])])
    ubatches = cache.init_batch(batch, 4)
    cache.rollback()
    generation = cache.generation
    assert cache.prepare(ubatches) == {0: 11, 1: 1}
    assert cache.generation == generation
    assert_holds(cache, 0, list(range(6)), list(range(6)))


@STORAGES
def test_a_rolled_back_call_leaves_no_trace(storage: str) -> None:
    cache = open_cache(storage)
    decode(cache, {0: range(6)})
    before = cache.stats()
    for ubatch in cache.init_batch(Batch([SeqTokens(0, range(90)), SeqTokens(1, range(3))]), 40)[:2]:
        cache.apply(ubatch)
        forward(cache, ubatch)
    cache.rollback()
    after = cache.stats()
    assert after.sequences == before.sequences
    assert after.committed_bytes == before.committed_bytes
    assert_holds(cache, 0, list(range(6)), list(range(6)))


@STORAGES
def test_all_or_none_of_the_sequences_get_their_cells(storage: str) -> None:
    cache = open_cache(storage, n_ctx=3000)
    decode(cache, {0: [1, 2, 3], 1: [4]})
    before = cache.stats().sequences
    cache.budget.set_limit(cache.budget.committed_bytes + 400_000)
    with pytest.raises(CacheFull) as refusal:
        decode(cache, {0: range(1000), 2: range(2900), 1: [5]}, n_ubatch=512)
    assert refusal.value.resource == "kv-budget"
    assert cache.stats().sequences == before
    assert_holds(cache, 0, [0, 1, 2], [1, 2, 3])
    decode(cache, {0: range(1000)}, n_ubatch=512)


@STORAGES
@pytest.mark.parametrize("fail_at", range(12))
def test_an_allocation_that_fails_in_any_layer_of_any_sequence_is_undone(
    storage: str, fail_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from elastikv.memory.storage import pages

    cache = open_cache(storage, n_ctx=2000)
    decode(cache, {0: [1, 2, 3], 1: [4]})
    before = cache.stats().sequences
    left = [fail_at]
    commit = pages.Region.commit

    def failing_commit(self: pages.Region, start: int, stop: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise MemoryError("none left")
        commit(self, start, stop)

    with monkeypatch.context() as patch:
        patch.setattr(pages.Region, "commit", failing_commit)
        with pytest.raises(CacheFull) as refusal:
            decode(cache, {0: range(1000), 1: range(1000), 2: range(1000)}, n_ubatch=512)
    assert refusal.value.resource == "machine"
    assert cache.stats().sequences == before
    assert_holds(cache, 0, [0, 1, 2], [1, 2, 3])
    assert_holds(cache, 1, [0], [4])
    decode(cache, {0: [9], 1: range(1000), 2: range(1000)}, n_ubatch=512)
    assert_holds(cache, 0, [0, 1, 2, 3], [1, 2, 3, 9])


def test_growth_gives_way_to_what_is_needed() -> None:
    cache = open_cache(growth="double:1GiB", n_ctx=4096)
    decode(cache, {0: range(1000)}, n_ubatch=512)
    assert cache.stats().capacity_cells == 1024
    cache.budget.set_limit(cache.budget.committed_bytes + 1024 * cache.bytes_per_cell)
    decode(cache, {0: range(30)})
    assert 1030 < cache.stats().capacity_cells < 2048
    cache.check()


def test_n_ctx_is_a_refusal_with_numbers() -> None:
    cache = open_cache(n_ctx=20)
    decode(cache, {0: range(18)})
    with pytest.raises(CacheFull) as refusal:
        decode(cache, {0: range(3)})
    error = refusal.value
    assert (error.resource, error.asked, error.left, error.limit, error.unit) == ("n_ctx", 3, 2, 20, "cells")
    decode(cache, {0: [18, 19]})
    assert_holds(cache, 0, list(range(20)), list(range(20)))


@STORAGES
def test_the_tail_is_cut(storage: str) -> None:
    cache = open_cache(storage)
    decode(cache, {0: range(20)})
    assert cache.seq_rm(0, 15)
    assert_holds(cache, 0, list(range(15)), list(range(15)))
    assert cache.truncation_point(0, 10) == 10
    assert cache.truncation_point(0, 99) == 15
    decode(cache, {0: [50]})
    assert_holds(cache, 0, list(range(16)), [*range(15), 50])


@STORAGES
def test_the_front_goes_and_positions_stay(storage: str) -> None:
    cache = open_cache(storage)
    decode(cache, {0: range(20)})
    assert cache.seq_rm(0, 0, 5)
    assert_holds(cache, 0, list(range(5, 20)), list(range(5, 20)))
    assert (cache.seq_pos_min(0), cache.seq_pos_max(0)) == (5, 19)
    assert cache.addresses(0, (0,))[0, 4] == 5
    decode(cache, {0: [77]})
    assert_holds(cache, 0, list(range(5, 21)), [*range(5, 20), 77])


@STORAGES
@CELL_TYPES
def test_the_middle_goes_and_k_is_rotated(storage: str, cell_type: str) -> None:
    cache = open_cache(storage, k_type=cell_type, v_type=cell_type)
    decode(cache, {0: range(20)})
    assert cache.seq_rm(0, 4, 10)
    assert_holds(cache, 0, list(range(14)), [*range(4), *range(10, 20)])


def test_long_shifts_go_piece_by_piece() -> None:
    cache = open_cache(n_ctx=5000, k_type="f32", v_type="f32")
    decode(cache, {0: range(5000)}, n_ubatch=512)
    assert cache.seq_rm(0, 1, 3)
    assert_holds(cache, 0, list(range(4998)), [0, *range(3, 5000)])


def test_without_a_rotation_the_middle_stays() -> None:
    cache = open_cache(rotate=None)
    decode(cache, {0: range(20)})
    assert not cache.seq_rm(0, 4, 10)
    assert not cache.seq_add(0, 0, -1, 3)
    assert_holds(cache, 0, list(range(20)), list(range(20)))
    assert cache.seq_rm(0, 0, 10)


@CELL_TYPES
def test_only_whole_sequences_can_be_shifted(cell_type: str) -> None:
    cache = open_cache(k_type=cell_type)
    decode(cache, {0: range(10)})
    assert cache.seq_add(0, 0, -1, 7)
    assert_holds(cache, 0, list(range(7, 17)), list(range(10)))
    assert not cache.seq_add(0, 8, -1, 1)
    assert not cache.seq_add(0, 0, -1, -8)
    assert cache.seq_add(0, 0, 7, 5)  # holds none of these
    assert cache.seq_add(0, 0, -1, -7)
    assert_holds(cache, 0, list(range(10)), list(range(10)))


def test_removing_all_closes_the_stream() -> None:
    cache = open_cache()
    decode(cache, {0: range(10), 1: [1]})
    assert cache.seq_rm(0)
    assert (cache.seq_ids(), cache.seq_pos_min(0), cache.seq_pos_max(0), cache.n_cells(0)) == ([1], -1, -1, 0)
    assert cache.seq_rm(1, 0, 99)
    assert (cache.stats().committed_bytes, cache.budget.kv_bytes, cache.seq_ids()) == (0, 0, [])
    assert cache.seq_rm(42)


@STORAGES
def test_copies_are_independent(storage: str) -> None:
    cache = open_cache(storage)
    decode(cache, {0: range(10), 1: [99]})
    assert cache.seq_cp(0, 1)
    assert cache.seq_cp(0, 2, 3, 7)
    decode(cache, {1: [50], 0: [60]})
    assert_holds(cache, 0, list(range(11)), [*range(10), 60])
    assert_holds(cache, 1, list(range(11)), [*range(10), 50])
    assert_holds(cache, 2, [3, 4, 5, 6], [3, 4, 5, 6])
    assert cache.seq_cp(0, 0)
    assert not cache.seq_cp(0, 0, 3)
    assert cache.seq_cp(7, 1)  # a copy of nothing
    assert cache.seq_ids() == [0, 2]


def test_a_copy_without_room_changes_nothing() -> None:
    cache = open_cache(n_ctx=3000)
    decode(cache, {0: range(3000), 1: [99]}, n_ubatch=512)
    cache.budget.set_limit(cache.budget.committed_bytes + 10_000)
    with pytest.raises(CacheFull):
        cache.seq_cp(0, 1)
    assert_holds(cache, 1, [0], [99])


def test_keep_and_clear() -> None:
    cache = open_cache()
    decode(cache, {0: [1], 1: [2], 2: [3]})
    cache.seq_keep(1)
    assert cache.seq_ids() == [1]
    assert_holds(cache, 1, [0], [2])
    cache.clear()
    assert (cache.seq_ids(), cache.budget.kv_bytes) == ([], 0)


@STORAGES
def test_resize_enlarges_and_shrinks_but_never_below_what_is_used(storage: str) -> None:
    cache = open_cache(storage, n_ctx=4000)
    decode(cache, {0: range(10), 1: [1]})
    cache.resize(3000)
    assert [each.capacity_cells for each in cache.stats().sequences] == [3000, 3000]
    cache.resize(12, seq_id=0)
    assert [each.capacity_cells for each in cache.stats().sequences] == [12, 3000]
    before = cache.stats().sequences
    with pytest.raises(InvalidRequest, match="sequence 0 uses 10 cells; it cannot be resized to 9"):
        cache.resize(9)
    with pytest.raises(InvalidRequest, match="n_ctx"):
        cache.resize(4001)
    assert cache.stats().sequences == before
    assert_holds(cache, 0, list(range(10)), list(range(10)))
    assert cache.stats().n_resizes == 3


def test_a_resize_without_room_changes_no_stream() -> None:
    cache = open_cache(n_ctx=4000)
    decode(cache, {0: range(10), 1: [1]})
    cache.resize(3000, seq_id=1)
    before = cache.stats().sequences
    cache.budget.set_limit(cache.budget.committed_bytes + 10_000)
    with pytest.raises(CacheFull):
        cache.resize(2000)
    assert cache.stats().sequences == before
    cache.check()


def test_a_stream_can_be_sized_before_its_first_token() -> None:
    cache = open_cache()
    cache.resize(50, seq_id=3)
    assert cache.seq_ids() == []
    assert cache.stats().capacity_cells == 50
    decode(cache, {3: range(50)})
    assert cache.stats().n_resizes == 0


@STORAGES
def test_shrink_to_fit_gives_back_what_is_spare(storage: str) -> None:
    cache = open_cache(storage, n_ctx=4000)
    decode(cache, {0: range(10)})
    cache.resize(3000)
    cache.resize(100, seq_id=1)
    before = cache.stats().committed_bytes
    assert cache.shrink_to_fit() == before - cache.stats().committed_bytes > 0
    assert [(each.seq_id, each.capacity_cells) for each in cache.stats().sequences] == [(0, 10)]
    assert_holds(cache, 0, list(range(10)), list(range(10)))
    assert cache.shrink_to_fit(0) == 0


@STORAGES
def test_a_static_cache_commits_everything_at_once(storage: str) -> None:
    cache = open_cache(storage, dynamic=False, n_ctx=1000)
    decode(cache, {0: [1]})
    committed = cache.stats().committed_bytes
    assert cache.stats().capacity_cells == 1000
    assert committed >= 1000 * cache.bytes_per_cell
    decode(cache, {0: range(999)}, n_ubatch=512)
    cache.shrink_to_fit()
    stats = cache.stats()
    assert (stats.committed_bytes, stats.n_resizes) == (committed, 0)
    cache.check()


def test_static_without_room_is_refused() -> None:
    cache = open_cache(dynamic=False, n_ctx=1000, budget=Budget(100_000))
    with pytest.raises(CacheFull):
        decode(cache, {0: [1]})
    assert cache.budget.kv_bytes == 0


def test_views_and_addresses_are_remembered_until_the_next_resize() -> None:
    cache = open_cache(k_type="q8_0")
    decode(cache, {0: [1], 1: [2]})
    cells, table = cache.cells(1, 0), cache.addresses(1, (1, 0))
    decode(cache, {0: [2]})
    assert cache.cells(1, 0) is cells
    assert cache.addresses(1, (1, 0)) is table
    (k, k_scale), (v,) = cells.k.planes, cells.v.planes
    assert table[1].tolist() == [k.data_ptr(), v.data_ptr(), k_scale.data_ptr(), 0, 0]
    generation = cache.generation
    decode(cache, {0: range(9)})
    assert cache.generation != generation
    assert cache.cells(1, 0).k.shape == (16, 1, 32)
    assert cache.addresses(1, (1, 0)) is not table


def test_operations_wait_for_the_end_of_a_call() -> None:
    cache = open_cache()
    cache.init_batch(Batch([SeqTokens(0, [1])]), 4)
    operations: list[Callable[[], object]] = [
        lambda: cache.seq_rm(0),
        lambda: cache.seq_cp(0, 1),
        lambda: cache.seq_keep(0),
        lambda: cache.seq_add(0, 0, -1, 1),
        lambda: cache.resize(20),
        cache.shrink_to_fit,
        lambda: cache.init_batch(Batch([SeqTokens(1, [1])]), 4),
    ]
    for operation in operations:
        with pytest.raises(RuntimeError, match="decode call is open"):
            operation()
    cache.rollback()
    assert cache.seq_rm(0)
    ubatch = cache.init_batch(Batch([SeqTokens(0, [1])]), 4)[0]
    cache.rollback()
    with pytest.raises(RuntimeError, match="between"):
        cache.apply(ubatch)


def test_every_resize_is_reported() -> None:
    events: list[ResizeEvent] = []
    cache = open_cache(on_resize=events.append)
    decode(cache, {0: range(10)})
    decode(cache, {0: range(10)})
    cache.shrink_to_fit()
    assert [(event.seq_id, event.old_cells, event.new_cells) for event in events] == [
        (0, 0, 16),
        (0, 16, 24),
        (0, 24, 20),
    ]
    assert events[-1].committed_bytes == cache.stats().committed_bytes
    assert cache.stats().n_resizes == 2
    assert cache.stats().resize_seconds > 0


WINDOWED = [KVLayer(2, 32, 32, window=100), KVLayer(2, 32, 32)]


@STORAGES
def test_pages_behind_a_window_are_given_back(storage: str) -> None:
    options = MemoryOptions(n_ctx=8192, storage=storage, growth="step:512", rotate=rotate_by_adding)  # type: ignore[arg-type]
    cache = KVCache(WINDOWED, options, Budget())
    for _ in range(40):
        decode(cache, {0: [1] * 100}, n_ubatch=64)
        cache.check()
    full = KVCache([KVLayer(2, 32, 32)] * 2, options, Budget())
    for _ in range(40):
        decode(full, {0: [1] * 100}, n_ubatch=64)
    windowed_layer = cache.stats().committed_bytes - full.stats().committed_bytes // 2
    assert windowed_layer < (100 + 256 + 512 + 64) * 256 + 4 * 4096
    stream = cache._streams.get(0)
    assert stream is not None
    released = stream.storage.released(0)
    assert 4000 - 100 - 256 < released <= 4000 - 99
    assert cache.cells(0, 0).k.planes[0][released:4000].eq(torch.arange(released, 4000)[:, None, None]).all()

    assert not cache.seq_rm(0, 2000)
    assert not cache.seq_rm(0, 0, 10)
    assert not cache.seq_add(0, 0, -1, 1)
    assert cache.truncation_point(0, 2000) == 0
    point = released + 99
    assert cache.truncation_point(0, point) == point
    assert cache.truncation_point(0, point - 1) == 0
    assert cache.seq_cp(0, 1)
    copied = cache._streams.get(1)
    assert copied is not None
    assert copied.storage.released(0) == released
    assert not cache.seq_cp(0, 2, 0, 2000)
    cache.check()
    assert cache.seq_rm(0, point)
    cache.check()
    assert cache.seq_rm(0)
    decode(cache, {1: [1] * 600}, n_ubatch=64)
    cache.seq_rm(1)
    assert cache.budget.kv_bytes == 0


@pytest.mark.parametrize("options", [{"n_ctx": 0}, {"n_ctx": 5, "initial": 0}, {"n_ctx": 5, "growth": "fast"}])
def test_malformed_options(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        MemoryOptions(**options)
