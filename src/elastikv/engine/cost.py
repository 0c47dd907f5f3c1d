"""What a sequence costs at least: enough to say early that a request can never fit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from elastikv.memory.base import CellType, KVLayer, LayerMemory, RecurrentLayer
from elastikv.memory.formats import cell_format

_FLOAT32_BYTES = 4


class SequenceCost:
    """Bytes of a sequence by its length; spare capacity and page rounding come on top."""

    def __init__(self, layers: Sequence[LayerMemory], k_type: CellType, v_type: CellType) -> None:
        attention = [layer for layer in layers if isinstance(layer, KVLayer)]
        recurrent = [layer for layer in layers if isinstance(layer, RecurrentLayer)]
        formats = cell_format(k_type), cell_format(v_type)
        self._rows = [(layer.n_bytes(*formats), layer.window) for layer in attention]
        self._state = sum(math.prod(shape) * _FLOAT32_BYTES for layer in recurrent for shape in layer.shapes)

    def n_bytes(self, n_tokens: int) -> int:
        cells = sum(row * min(n_tokens, window or n_tokens) for row, window in self._rows)
        return cells + self._state

    def static_bytes(self, n_ctx: int) -> int:
        """What a sequence costs where all of ``n_ctx`` is committed at once, in every layer."""
        return n_ctx * sum(row for row, _ in self._rows) + self._state
