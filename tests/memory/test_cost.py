"""The cost model says to the byte what memory commits; ``plan`` and admission ask nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from memory_helpers import decode

from elastikv.memory import Budget, KVLayer, MemoryCost, MemoryOptions, RecurrentLayer, make_memory

FULL, WINDOW = KVLayer(2, 24, 40), KVLayer(1, 33, 33, window=100)
STATE = RecurrentLayer(((700, 3), (5,)))
LAYERS = {
    "full": [FULL],
    "windows": [FULL, WINDOW, WINDOW],
    "hybrid": [STATE, FULL, STATE],
    "hybrid with windows": [STATE, WINDOW],
    "state": [STATE],
}


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("storage", ["mmap", "copy"])
@pytest.mark.parametrize(
    "options",
    [{"growth": "exact"}, {"growth": "step:64", "k_type": "q8_0"}, {"growth": "double:1MiB"}, {"dynamic": False}],
    ids=str,
)
@pytest.mark.parametrize("n_batch", [7, 130, 2000])
def test_it_agrees_with_what_is_committed(layers: list, storage: str, options: dict[str, Any], n_batch: int) -> None:
    chosen = MemoryOptions(1000, storage=storage, initial=16, **options)  # type: ignore[arg-type]
    cost, memory = MemoryCost(layers, chosen), make_memory(layers, chosen, Budget())
    n_held = 0
    for n_tokens in (1, 90, 357, 700, 1000):
        while n_held < n_tokens:
            n_new = min(n_batch, n_tokens - n_held)
            decode(memory, {0: range(n_new)}, n_ubatch=512)
            n_held += n_new
        (sequence,) = memory.stats().sequences
        assert sequence.committed_bytes == cost.n_bytes(n_tokens, sequence.capacity_cells)
        assert sequence.committed_bytes >= cost.least_bytes(n_tokens)
    assert memory.stats().sequences[0].committed_bytes == cost.n_bytes(1000, 1000)
    memory.clear()
    decode_all(memory, 357, n_batch)
    (sequence,) = memory.stats().sequences
    if layers != [STATE]:
        assert sequence.capacity_cells == cost.n_cells(357, n_batch)
    assert sequence.committed_bytes == cost.n_bytes(357, sequence.capacity_cells)


def decode_all(memory: Any, n_tokens: int, n_batch: int) -> None:
    for start in range(0, n_tokens, n_batch):
        decode(memory, {0: range(start, min(start + n_batch, n_tokens))}, n_ubatch=512)


@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("dynamic", [True, False])
def test_so_many_tokens_fit(layers: list, dynamic: bool) -> None:
    """That many can be decoded one by one within the bytes, and (page by page) not many more."""
    options = MemoryOptions(1000, growth="exact", initial=1, dynamic=dynamic)
    cost = MemoryCost(layers, options)
    assert cost.most_tokens(cost.static_bytes()) == 1000
    assert cost.most_tokens(0) == 0
    if dynamic and layers != [STATE]:
        n_bytes = cost.n_bytes(300)
        assert 300 - 16 <= cost.most_tokens(n_bytes) <= 1000
        memory = make_memory(layers, options, Budget(n_bytes + cost.state_bytes))
        for token in range(cost.most_tokens(n_bytes)):
            decode(memory, {0: [token]})


def test_a_cell_of_qwen3_5_27b_costs_64_kib() -> None:
    layers = ([RecurrentLayer(((10_240, 3), (48, 128, 128)))] * 3 + [KVLayer(4, 256, 256)]) * 16
    cost = MemoryCost(layers, MemoryOptions(1000))
    assert (cost.bytes_per_cell, cost.state_bytes) == (64 << 10, 48 * 4 * (10_240 * 3 + 48 * 128 * 128))
    packed = MemoryCost(layers, MemoryOptions(1000, k_type="q8_0", v_type="q8_0"))
    assert packed.bytes_per_cell == (64 << 10) * 34 // 64


def test_layers_without_cells_cost_none() -> None:
    cost = MemoryCost([RecurrentLayer(((16,),))], MemoryOptions(1000))
    assert (cost.bytes_per_cell, cost.state_bytes) == (0, 4096)
