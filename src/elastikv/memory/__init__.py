"""Memory that grows on demand: what the project is about. Knows no model, no engine, no server."""

from elastikv.memory.base import (
    Cells,
    CellType,
    KVLayer,
    LayerMemory,
    Memory,
    MemoryStats,
    RecurrentLayer,
    SequenceStats,
)
from elastikv.memory.budget import Budget
from elastikv.memory.growth import Growth, parse_growth, parse_size
from elastikv.memory.hybrid import HybridMemory
from elastikv.memory.kv_cache import KVCache
from elastikv.memory.make import MemoryCost, make_memory, memory_cost
from elastikv.memory.options import MemoryOptions, ResizeEvent, RotateK
from elastikv.memory.recurrent import RecurrentMemory

__all__ = [
    "Budget",
    "CellType",
    "Cells",
    "Growth",
    "HybridMemory",
    "KVCache",
    "KVLayer",
    "LayerMemory",
    "Memory",
    "MemoryCost",
    "MemoryOptions",
    "MemoryStats",
    "RecurrentLayer",
    "RecurrentMemory",
    "ResizeEvent",
    "RotateK",
    "SequenceStats",
    "make_memory",
    "memory_cost",
    "parse_growth",
    "parse_size",
]
