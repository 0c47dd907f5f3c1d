"""What is refused, by the budget, the machine or llama.cpp, loses nothing; memory is counted where it lies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.forward import random_ids

from bench.processes import resident_bytes
from elastikv import LLM
from elastikv.batch import Batch, SeqTokens
from elastikv.errors import CacheFull
from elastikv.memory import Budget
from elastikv.memory.budget import HOST
from elastikv.memory.machine import MachineMemory
from elastikv.runtimes.llama_cpp import context, runtime
from elastikv.runtimes.llama_cpp.context import Context, ContextBytes, ContextSize
from elastikv.runtimes.llama_cpp.growing import GrowingContext

pytest.importorskip("llama_cpp.llama_cpp", reason="llama-cpp-python is not installed", exc_type=ImportError)


MIB = 1 << 20


def test_a_refusal_loses_nothing(open_llm: Callable[..., LLM]) -> None:
    llm, twin = open_llm(kv_budget=2 << 20), open_llm()
    ids = random_ids(200, 300)
    assert torch.equal(llm.forward(ids), twin.forward(ids))
    before = llm.stats()
    with pytest.raises(CacheFull) as refusal:
        llm.forward(random_ids(3000, 300))
    assert refusal.value.resource == "kv-budget"
    assert llm.stats().sequences == before.sequences
    assert torch.equal(llm.forward([5, 6]), twin.forward([5, 6]))
    with pytest.raises(CacheFull) as refusal:
        llm.forward([1] * 4096)
    assert refusal.value.resource == "n_ctx"


def fail_next(monkeypatch: pytest.MonkeyPatch, failures: list[BaseException]) -> None:
    """The next contexts are not made, one for each failure."""
    left = iter(failures)

    def make(*arguments: Any) -> Context:
        if (failure := next(left, None)) is not None:
            raise failure
        return Context(*arguments)

    monkeypatch.setattr(runtime, "Context", make)


@pytest.mark.parametrize("n_failures", [1, 2, 3])
@pytest.mark.parametrize("error", [MemoryError("none left"), KeyboardInterrupt()])
@pytest.mark.parametrize("arch", ["qwen3", "qwen3_5"])
def test_contexts_that_cannot_be_made_lose_nothing(
    arch: str, error: BaseException, n_failures: int, open_llm: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the larger one fails, then one like the old, then one at the next use."""
    llm, twin = open_llm(arch), open_llm(arch)
    ids = random_ids(200, 300)
    for seq_id in (0, 1):
        assert torch.equal(llm.forward(ids[:100], seq_id), twin.forward(ids[:100], seq_id))
    fail_next(monkeypatch, [error] * n_failures)
    for _ in range(1 + (n_failures == 3)):
        with pytest.raises((CacheFull, KeyboardInterrupt)):
            llm.memory.init_batch(Batch([SeqTokens(0, ids, 1)]), 512)
        assert [llm.memory.n_tokens(seq_id) for seq_id in (0, 1)] == [100, 100]
        assert llm.budget.committed_bytes > 0
    assert llm.memory.seq_rm(1)
    assert twin.memory.seq_rm(1)
    more = random_ids(150, 300, seed=2)
    assert torch.equal(llm.forward(more), twin.forward(more))


def test_the_machine_refuses_before_llama_cpp_allocates(open_llm: Callable[..., LLM]) -> None:
    """As where a control group leaves little: nothing is tried that would be killed."""
    llm, twin = open_llm(), open_llm()
    ids = random_ids(200, 300)
    for each in (llm, twin):
        each.forward(ids)
    left = 1 << 20
    llm.budget.add_pool(HOST, lambda: MachineMemory(8 * left, 2 * left))
    with pytest.raises(CacheFull) as refusal:
        llm.forward(random_ids(3000, 300))
    assert refusal.value.resource == "machine"
    assert torch.equal(llm.forward([5, 6]), twin.forward([5, 6]))


def test_a_budget_too_small_for_the_first_context(open_llm: Callable[..., LLM]) -> None:
    with pytest.raises(CacheFull):
        open_llm(kv_budget="100KiB")
    with pytest.raises(CacheFull):
        open_llm(kv_budget="2MiB", kv_dynamic=False)


def test_cells_and_buffers_are_counted_as_llama_cpp_says(open_llm: Callable[..., LLM]) -> None:
    llm = open_llm()
    layers = llm.model.info.n_layers
    llm.forward(random_ids(700, 300))
    stats = llm.stats()
    assert stats.capacity_cells == 768
    assert stats.committed_bytes == pytest.approx(768 * llm.cost.bytes_per_cell, rel=0.02)
    assert llm.cost.bytes_per_cell % (2 * 2 * layers) == 0  # K and V of 16 bits
    assert stats.compute_bytes > 0
    assert llm.budget.committed_bytes == stats.committed_bytes + stats.compute_bytes
    assert stats.peak_committed_bytes > llm.budget.committed_bytes  # what was held was on the host once more


@pytest.mark.filterwarnings("ignore:n_ctx = ")
def test_what_is_counted_is_resident(open_llm: Callable[..., LLM]) -> None:
    llm = open_llm(n_ctx=1 << 18, kv_dtype="f32")
    committed, resident = llm.stats().committed_bytes, resident_bytes()
    llm.memory.resize(1 << 17)
    grown = llm.stats().committed_bytes - committed
    assert grown > 100 * MIB
    # Its own books of cells, some 60 bytes each, are not counted: little beside cells of a real model.
    assert resident_bytes() - resident == pytest.approx(grown, rel=0.08)
    llm.shrink_to_fit()
    assert llm.stats().committed_bytes == committed
    assert resident_bytes() - resident < 0.1 * grown


SAID = """
llama_context:  CUDA_Host  output buffer size =     0.50 MiB
llama_kv_cache:        CPU KV buffer size =     3.00 MiB
llama_kv_cache:      CUDA0 KV buffer size =    12.00 MiB
llama_memory_recurrent:      CUDA0 RS buffer size =     2.00 MiB
sched_reserve:      CUDA0 compute buffer size =    20.00 MiB
sched_reserve:  CUDA_Host compute buffer size =     4.00 MiB
"""


class OnDevice:
    """A context half of which is on a device."""

    def __init__(self, size: ContextSize) -> None:
        self.size = size
        n = size.n_cells // 256
        self.n_bytes = ContextBytes({HOST: 3 * n * MIB, "CUDA0": 12 * n * MIB}, {}, {"CUDA0": 20 * MIB})

    def state_bytes(self) -> int:
        return 5 * MIB

    def state(self) -> np.ndarray:
        return np.zeros(5 * MIB, dtype=np.uint8)

    def restore(self, state: np.ndarray) -> None:
        assert len(state) == 5 * MIB

    def close(self) -> None:
        pass


def test_host_and_device_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "device_pools", lambda: {"CUDA0": None})
    said = context._bytes_in(SAID)
    assert said.by_pool() == {HOST: 7.5 * MIB, "CUDA0": 34 * MIB}
    assert said.kv == 17 * MIB


def test_each_pool_has_its_own_limit() -> None:
    left = {HOST: 100 * MIB, "CUDA0": 60 * MIB}
    budget = Budget()
    for pool in left:
        budget.add_pool(pool, lambda pool=pool: MachineMemory(1 << 40, (1 << 40) // 50 + left[pool]))

    def simulate(size: ContextSize) -> ContextBytes:
        n_bytes = OnDevice(size).n_bytes
        return ContextBytes({"CUDA0": sum(n_bytes.cells.values())}, {}, n_bytes.compute)

    contexts = GrowingContext(OnDevice, simulate, ContextSize(256, 1), budget)  # type: ignore[arg-type]
    assert (budget.pool_bytes(HOST), budget.pool_bytes("CUDA0")) == (3 * MIB, 32 * MIB)
    assert (budget.kv_bytes, budget.compute_bytes) == (15 * MIB, 20 * MIB)
    contexts.resize(ContextSize(1024, 1))
    assert (budget.pool_bytes(HOST), budget.pool_bytes("CUDA0")) == (12 * MIB, 68 * MIB)
    left["CUDA0"] = 10 * MIB
    with pytest.raises(CacheFull) as refusal:
        contexts.resize(ContextSize(2048, 1))
    assert (refusal.value.asked, refusal.value.left) == (48 * MIB, 10 * MIB)
    left.update({HOST: 4 * MIB, "CUDA0": 1 << 30})
    with pytest.raises(CacheFull):  # the state has no place on the host
        contexts.resize(ContextSize(512, 1))
    assert contexts.now.size == ContextSize(1024, 1)
    contexts.close()
    assert budget.committed_bytes == 0
