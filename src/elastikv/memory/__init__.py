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
from elastikv.memory.cost import Cost, MemoryCost
from elastikv.memory.growth import Growth, parse_growth, parse_size
from elastikv.memory.hybrid import HybridMemory
from elastikv.memory.kv_cache import KVCache
from elastikv.memory.make import make_memory
from elastikv.memory.options import MemoryOptions, ResizeEvent, RotateK
from elastikv.memory.recurrent import RecurrentMemory

__all__ = [
    "Budget",
    "CellType",
    "Cells",
    "Cost",
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
    "parse_growth",
    "parse_size",
]
