"""Committed bytes are what the operating system says: resident pages of this process, within 2 %."""

from __future__ import annotations

import gc
import mmap
import os
import sys
from pathlib import Path

import pytest
import torch

from elastikv.batch import Batch, SeqTokens
from elastikv.memory import Budget, HybridMemory, KVCache, KVLayer, MemoryOptions, RecurrentLayer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

STORAGES = pytest.mark.parametrize("storage", ["mmap", "copy"])
LAYERS = [KVLayer(4, 128, 128)] * 4  # 8 KiB a cell


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Watch:
    """Compares the growth of resident memory since its making with what is said to be committed."""

    def __init__(self) -> None:
        gc.collect()
        self.base = resident_bytes()

    def agrees(self, committed: int, slack: int = 1 << 18) -> bool:
        difference = resident_bytes() - self.base - committed
        return abs(difference) <= committed * 0.02 + slack


def append(memory: KVCache | HybridMemory, n_tokens: int, *seq_ids: int) -> None:
    """No forward: its own temporary tensors would be in the way, and every page is resident without it."""
    batch = Batch(SeqTokens(seq_id, bytes(n_tokens)) for seq_id in seq_ids or (0,))
    for ubatch in memory.init_batch(batch, 512):
        memory.apply(ubatch)
    memory.commit()


def open_cache(storage: str, growth: str = "double:32MiB", **layer_options: int) -> KVCache:
    layers = [KVLayer(4, 128, 128, **layer_options)] * 4
    return KVCache(layers, MemoryOptions(n_ctx=65_536, storage=storage, growth=growth), Budget())  # type: ignore[arg-type]


@pytest.fixture(autouse=True, scope="module")
def once_per_process() -> None:
    """Code that is read into memory when it first runs, and the like."""
    for storage in ("mmap", "copy"):
        cache = open_cache(storage)
        append(cache, 10)
        append(cache, 1000)
        cache.close()


@STORAGES
def test_growing_shrinking_and_closing(storage: str) -> None:
    watch = Watch()
    cache = open_cache(storage)
    for n_tokens in (100, 900, 6000, 5000):
        append(cache, n_tokens)
        assert watch.agrees(cache.stats().committed_bytes)
    assert cache.stats().committed_bytes >= 96 << 20
    cache.seq_rm(0, 3000)
    cache.shrink_to_fit()
    assert cache.stats().committed_bytes < 25 << 20
    assert watch.agrees(cache.stats().committed_bytes)
    cache.resize(20_000)
    assert watch.agrees(cache.stats().committed_bytes)
    cache.clear()
    assert watch.agrees(0)


@STORAGES
def test_small_streams_are_not_blown_up_to_huge_pages(storage: str) -> None:
    watch = Watch()
    cache = open_cache(storage, growth="step:256")
    for seq_id in range(20):
        append(cache, 10, seq_id)
    assert cache.stats().committed_bytes == 20 * (2 << 20)
    assert watch.agrees(cache.stats().committed_bytes)


@STORAGES
def test_behind_a_window(storage: str) -> None:
    watch = Watch()
    cache = open_cache(storage, window=1024)
    for _ in range(12):
        append(cache, 1000)
        assert watch.agrees(cache.stats().committed_bytes)
    assert cache.stats().committed_bytes < 64 << 20


@STORAGES
def test_a_refused_growth_leaves_nothing_resident(storage: str) -> None:
    watch = Watch()
    cache = open_cache(storage)
    append(cache, 1000)
    cache.budget.set_limit(cache.budget.committed_bytes + (60 << 20))
    with pytest.raises(Exception, match="KV cache is full"):
        append(cache, 20_000)
    assert watch.agrees(cache.stats().committed_bytes)


def test_states_and_their_spares() -> None:
    layers = [RecurrentLayer(((16, 128, 128),))] * 8  # 8 MiB
    watch = Watch()
    memory = HybridMemory(LAYERS, layers, MemoryOptions(n_ctx=1000), Budget())
    for _ in range(2):
        append(memory, 1, 0, 1)
        assert watch.agrees(memory.stats().committed_bytes)
    assert memory.stats().committed_bytes > 32 << 20
    memory.shrink_to_fit()
    assert watch.agrees(memory.stats().committed_bytes)
    memory.clear()
    assert watch.agrees(0)


def test_freed_memory_goes_back_even_while_a_tensor_is_still_held() -> None:
    watch = Watch()
    cache = open_cache("mmap")
    append(cache, 6000)
    held: list[torch.Tensor] = [cache.cells(0, 0).k.planes[0]]
    assert watch.agrees(cache.stats().committed_bytes)
    cache.clear()
    assert watch.agrees(0)
    assert held[0][0].sum() == 0


def test_the_measure_itself_notices_four_mebibytes() -> None:
    before = resident_bytes()
    block = mmap.mmap(-1, 4 << 20)  # not from the heap, which may have pages to spare
    block.write(bytes([1]) * len(block))
    assert resident_bytes() - before >= 4 << 20
    block.close()
