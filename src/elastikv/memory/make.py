"""From what a model declares to the memory that holds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from elastikv.errors import InvalidRequest
from elastikv.memory.base import CellType, KVLayer, LayerMemory, RecurrentLayer
from elastikv.memory.budget import Budget
from elastikv.memory.formats import cell_format
from elastikv.memory.hybrid import HybridMemory
from elastikv.memory.kv_cache import KVCache
from elastikv.memory.options import MemoryOptions
from elastikv.memory.recurrent import RecurrentMemory
from elastikv.memory.states import state_bytes


def make_memory(
    layers: Sequence[LayerMemory], options: MemoryOptions, budget: Budget
) -> KVCache | RecurrentMemory | HybridMemory:
    """The memory for a model's layers. Allocates nothing. Raises InvalidRequest if no layer remembers anything."""
    attention = [layer for layer in layers if isinstance(layer, KVLayer)]
    recurrent = [layer for layer in layers if isinstance(layer, RecurrentLayer)]
    if attention and recurrent:
        return HybridMemory(attention, recurrent, options, budget)
    if attention:
        return KVCache(attention, options, budget)
    if recurrent:
        return RecurrentMemory(recurrent, options, budget)
    raise InvalidRequest("a model needs at least one layer with memory")


@dataclass(frozen=True, slots=True)
class MemoryCost:
    """What layers cost before anything is allocated: per token, and once per sequence. Pages round both up."""

    bytes_per_cell: int
    recurrent_bytes: int


def memory_cost(layers: Sequence[LayerMemory], k_type: CellType = "f16", v_type: CellType = "f16") -> MemoryCost:
    """Raises InvalidRequest for an unknown cell type."""
    formats = cell_format(k_type), cell_format(v_type)
    return MemoryCost(
        sum(layer.n_bytes(*formats) for layer in layers if isinstance(layer, KVLayer)),
        state_bytes([layer for layer in layers if isinstance(layer, RecurrentLayer)]),
    )
