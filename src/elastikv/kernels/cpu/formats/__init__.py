"""How cells and weights lie in memory, and the code that reads and writes them. Found here by name.

``CELLS`` has the layout of each cell format (``memory/formats``) by its name: one module each, with its store, QK and
PV. ``WEIGHTS`` has that of each packed type (``kernels.weights.PackedTensor``).
"""

from __future__ import annotations

from elastikv.kernels.cpu.formats.cells import CellLayout
from elastikv.kernels.cpu.formats.gguf_blocks import Q4_0_BLOCKS, Q8_0_BLOCKS
from elastikv.kernels.cpu.formats.k_quants import Q4_K_BLOCKS, Q5_K_BLOCKS, Q6_K_BLOCKS
from elastikv.kernels.cpu.formats.plain import BF16, F16, F32
from elastikv.kernels.cpu.formats.q8_0 import Q8_0
from elastikv.kernels.cpu.formats.weights import BlockLayout

CELLS: dict[str, CellLayout] = {each.label: each for each in (F32, F16, BF16, Q8_0)}

WEIGHTS: dict[str, BlockLayout] = {
    "q8_0": Q8_0_BLOCKS,
    "q4_0": Q4_0_BLOCKS,
    "q4_k": Q4_K_BLOCKS,
    "q5_k": Q5_K_BLOCKS,
    "q6_k": Q6_K_BLOCKS,
}

__all__ = ["CELLS", "WEIGHTS", "BlockLayout", "CellLayout"]
