from __future__ import annotations

from elastikv.memory import KVLayer, MemoryCost, RecurrentLayer, memory_cost


def test_a_cell_of_qwen3_5_27b_costs_64_kib() -> None:
    layers = ([RecurrentLayer(((10_240, 3), (48, 128, 128)))] * 3 + [KVLayer(4, 256, 256)]) * 16
    assert memory_cost(layers) == MemoryCost(64 << 10, 48 * 4 * (10_240 * 3 + 48 * 128 * 128))
    assert memory_cost(layers, "q8_0", "q8_0").bytes_per_cell == (64 << 10) * 34 // 64


def test_layers_without_cells_cost_none() -> None:
    assert memory_cost([RecurrentLayer(((16,),))]) == MemoryCost(0, 64)
