"""What contexts of llama.cpp take, told by contexts that are only simulated: with neither weights nor cells."""

from __future__ import annotations

import bisect
from functools import lru_cache

from elastikv.memory.growth import parse_growth, round_up
from elastikv.memory.options import MemoryOptions
from elastikv.runtimes.llama_cpp.context import Context, ContextBytes, ContextSize
from elastikv.runtimes.llama_cpp.model import Model

DEFAULT_GROWTH = "double:1GiB"

CELLS = 256
"""llama.cpp has contexts of a multiple of so many cells."""

_MANY_CELLS = 1 << 16
"""Where every window is full, and the rounding of what llama.cpp says does not matter."""


class Simulation:
    """Tells what contexts would take. model: one that is simulated as well. has_states: whether sequences have some."""

    def __init__(self, model: Model, options: MemoryOptions, n_ubatch: int) -> None:
        self._model = model
        self._options = options
        self._n_ubatch = n_ubatch
        self.n_bytes = lru_cache(maxsize=64)(self._n_bytes)
        self.has_states = bool(sum(self._context_bytes(ContextSize(CELLS, 1)).states.values()))

    def close(self) -> None:
        """Free the model."""
        self._model.close()

    def _n_bytes(self, size: ContextSize) -> ContextBytes:
        """Of a context of this size. States are no simulation to llama.cpp: so there is one, and is multiplied."""
        if not self.has_states:
            return self._context_bytes(size)
        one = self._context_bytes(ContextSize(size.n_cells, 1))
        states = {pool: n * size.n_sequences for pool, n in one.states.items()}
        return ContextBytes(one.cells, states, one.compute)

    def _context_bytes(self, size: ContextSize) -> ContextBytes:
        options = self._options
        context = Context(self._model, size, self._n_ubatch, options.k_type, options.v_type, 1)
        context.close()
        return context.n_bytes


class LlamaCppCost:
    """A ``Cost``: the part of a context that a sequence takes. All share its cells."""

    def __init__(self, simulation: Simulation, options: MemoryOptions) -> None:
        self._options = options
        self._simulation = simulation
        many, more = (simulation.n_bytes(ContextSize(n, 1)) for n in (_MANY_CELLS, 2 * _MANY_CELLS))
        self._per_cell = (more.kv - many.kv) / _MANY_CELLS
        self.bytes_per_cell = round(self._per_cell)
        self.state_bytes = sum(many.states.values())
        self.growth = options.growth or DEFAULT_GROWTH

    def n_bytes(self, n_tokens: int, n_cells: int | None = None) -> int:
        """Committed by ``n_tokens`` in ``n_cells`` (None: as many)."""
        n_cells = n_tokens if n_cells is None else n_cells
        simulated = min(max(round_up(n_cells, CELLS), CELLS), 2 * _MANY_CELLS)
        n_bytes = self._simulation.n_bytes(ContextSize(simulated, 1)).kv
        return max(n_bytes + round((n_cells - simulated) * self._per_cell), 0)

    def least_bytes(self, n_tokens: int) -> int:
        """What memory commits at least for ``n_tokens``: all of n_ctx where it is not dynamic."""
        return self.n_bytes(n_tokens) if self._options.dynamic else self.static_bytes()

    def static_bytes(self) -> int:
        """What a context of ``n_ctx`` cells takes."""
        return self.n_bytes(self._options.n_ctx, round_up(self._options.n_ctx, CELLS))

    def n_cells(self, n_tokens: int, n_batch: int) -> int:
        """Cells of a context once one sequence was appended ``n_tokens`` to, ``n_batch`` at a time."""
        n_ctx = round_up(self._options.n_ctx, CELLS)
        if not self._options.dynamic:
            return n_ctx
        return round_up(
            parse_growth(self.growth).capacity_after_fill(
                n_tokens,
                initial=round_up(self._options.initial, CELLS),
                n_ctx=n_ctx,
                bytes_per_cell=max(self.bytes_per_cell, 1),
                page_cells=CELLS,
                n_batch=n_batch,
            ),
            CELLS,
        )

    def most_tokens(self, n_bytes: int) -> int:
        """How many tokens a sequence may have in ``n_bytes``; while growing, what it holds is there once more."""
        if not self._options.dynamic:
            return self._options.n_ctx if self.static_bytes() <= n_bytes else 0
        fits = bisect.bisect_right(range(self._options.n_ctx + 1), n_bytes, key=lambda n: 2 * self.n_bytes(n))
        return max(fits - 1, 0)
