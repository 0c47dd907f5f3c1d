"""From what a model declares to the memory that holds it."""

from __future__ import annotations

from collections.abc import Sequence

from elastikv.errors import InvalidRequest
from elastikv.memory.base import KVLayer, LayerMemory, RecurrentLayer
from elastikv.memory.budget import Budget
from elastikv.memory.hybrid import HybridMemory
from elastikv.memory.kv_cache import KVCache
from elastikv.memory.options import MemoryOptions
from elastikv.memory.recurrent import RecurrentMemory


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
