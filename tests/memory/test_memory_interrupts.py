"""Ctrl-C at any line of any operation: after ``rollback()`` the memory is sound, and nothing is there that was not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from memory_helpers import RECURRENT_LAYERS, AnyMemory, attention_of, decode, recurrent_of, rotate_by_adding, state_sums
from support.interrupts import every_line

from elastikv.memory import Budget, KVLayer, MemoryOptions, make_memory

FULL, WINDOW = KVLayer(2, 8, 4), KVLayer(1, 32, 40, window=30)
LAYERS = {"full": [FULL, FULL], "windows": [FULL, WINDOW], "hybrid": [FULL, *RECURRENT_LAYERS]}
OPERATIONS: dict[str, Callable[[AnyMemory], Any]] = {
    "decode": lambda memory: decode_or_roll_back(memory, {0: range(1, 400), 1: [5], 2: [1, 2, 3]}),
    "cut the tail": lambda memory: memory.seq_rm(0, 50),
    "cut the front": lambda memory: memory.seq_rm(0, 0, 20),
    "cut the middle": lambda memory: memory.seq_rm(0, 10, 20),
    "forget": lambda memory: memory.seq_rm(0),
    "copy": lambda memory: memory.seq_cp(0, 1, 0, 50),
    "keep": lambda memory: memory.seq_keep(1),
    "shift": lambda memory: memory.seq_add(0, 0, -1, 7),
    "checkpoint": lambda memory: memory.checkpoint(0),
    "resize": lambda memory: memory.resize(100),
    "shrink": lambda memory: memory.shrink_to_fit(),
    "clear": lambda memory: memory.clear(),
}


def decode_or_roll_back(memory: AnyMemory, tokens: dict[int, Any]) -> None:
    try:
        decode(memory, tokens, n_ubatch=64)
    except BaseException:
        memory.rollback()
        raise


def filled(layers: list, storage: str) -> AnyMemory:
    options = MemoryOptions(2000, initial=8, storage=storage, growth="step:64", rotate=rotate_by_adding)  # type: ignore[arg-type]
    memory = make_memory(layers, options, Budget())
    decode(memory, {0: range(1, 51), 1: range(7, 27)}, n_ubatch=64)
    memory.checkpoint(0)
    decode(memory, {0: range(51, 71)}, n_ubatch=64)
    return memory


def held(memory: AnyMemory) -> dict[int, list[tuple[int, int]]]:
    """Positions and ids of each sequence, as the first attention layer has them."""
    cache, found = attention_of(memory), {}
    assert cache is not None
    for seq_id in cache.seq_ids():
        cells, n = cache.cells(0, seq_id), cache.n_cells(seq_id)
        positions, ids = (data.load(slice(n))[:, 0, 0].int().tolist() for data in (cells.k, cells.v))
        found[seq_id] = list(zip(positions, ids, strict=True))
        assert positions == list(range(cells.first, cells.first + n))
        states = recurrent_of(memory)
        if states:
            assert state_sums(states, seq_id) == {sum(ids)}
    return found


@pytest.mark.parametrize("step", [23, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize("storage", ["mmap", "copy"])
@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
def test_an_operation(layers: list, storage: str, operation: Callable[[AnyMemory], Any], step: int) -> None:
    memories: list[AnyMemory] = []

    def make() -> Callable[[], Any]:
        memories[:] = [filled(layers, storage)]
        return lambda: operation(memories[0])

    before = held(filled(layers, storage))
    done = filled(layers, storage)
    operation(done)
    after = held(done)
    for _ in every_line(make, step=step):
        (memory,) = memories
        memory.rollback()
        memory.check()
        for seq_id, cells in held(memory).items():
            assert cells in (before.get(seq_id), after.get(seq_id), before.get(seq_id, [])[: len(cells)]), seq_id
        operation(memory)
        memory.check()
        memory.clear()
        assert memory.budget.kv_bytes == 0
