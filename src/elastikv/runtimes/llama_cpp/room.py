"""How many cells and sequences the context that all share has room for: when it grows, and when it shrinks."""

from __future__ import annotations

import time
from contextlib import suppress

from elastikv.errors import CacheFull
from elastikv.memory import MemoryOptions, ResizeEvent
from elastikv.memory.growth import parse_growth, round_up
from elastikv.runtimes.llama_cpp.context import MOST_SEQUENCES, ContextSize
from elastikv.runtimes.llama_cpp.cost import CELLS, DEFAULT_GROWTH
from elastikv.runtimes.llama_cpp.growing import GrowingContext


class Room:
    """The size of a context, by the growth policy. n_resizes, seconds: of all resizes so far."""

    def __init__(self, contexts: GrowingContext, options: MemoryOptions) -> None:
        self._contexts = contexts
        self._options = options
        self._growth = parse_growth(options.growth or DEFAULT_GROWTH)
        self._n_ctx = round_up(options.n_ctx, CELLS)
        self._first_slots = contexts.size.n_sequences
        self.n_resizes, self.seconds = 0, 0.0

    def has(self, n_cells: int, n_sequences: int) -> bool:
        """Whether there is as much now."""
        now = self._contexts.size
        return n_cells <= now.n_cells and n_sequences <= now.n_sequences

    def require(self, n_cells: int, n_sequences: int) -> None:
        """Grow to hold these, if it does not. Raises CacheFull, with nothing changed."""
        if n_sequences > MOST_SEQUENCES:
            raise CacheFull("machine", asked=n_sequences, left=0, limit=MOST_SEQUENCES)
        if self.has(n_cells, n_sequences):
            return
        now = self._contexts.size
        least = max(round_up(n_cells, CELLS), now.n_cells)
        wish = self._growth.capacity_for(
            least,
            now.n_cells,
            initial=self._options.initial,
            n_ctx=max(least, self._n_ctx),
            bytes_per_cell=self._bytes_per_cell(),
            page_cells=CELLS,
        )
        n_slots = _slots(n_sequences, now.n_sequences)
        for size in sorted({round_up(n, CELLS) for n in (least, (least + wish) // 2, wish)}, reverse=True):
            try:
                self.resize(ContextSize(size, n_slots))
                break
            except CacheFull:
                if size == least:
                    raise

    def shrink(self, n_used: int, n_sequences: int, factor: int) -> int:
        """To what is used, if there are more than ``factor`` times as many cells; returns the bytes given back.

        n_sequences: that it has to tell apart. If what is used has no place while it is copied, it is not done.
        """
        now, before = self._contexts.size, self._contexts.n_bytes.kv
        n_cells = round_up(max(n_used, min(self._options.initial, self._n_ctx)), CELLS)
        if not self._options.dynamic or n_cells * (factor if n_used else 1) >= now.n_cells:
            return 0
        with suppress(CacheFull):
            self.resize(ContextSize(n_cells, min(_slots(n_sequences, self._first_slots), now.n_sequences)))
        return max(before - self._contexts.n_bytes.kv, 0)

    def resize(self, size: ContextSize) -> None:
        """To exactly this size. Raises CacheFull, with nothing changed."""
        before = self._contexts.size
        if size == before:
            return
        started = time.perf_counter()
        self._contexts.resize(size)
        seconds = time.perf_counter() - started
        self.n_resizes, self.seconds = self.n_resizes + 1, self.seconds + seconds
        if self._options.on_resize:
            n_bytes = self._contexts.n_bytes.kv
            self._options.on_resize(ResizeEvent(0, before.n_cells, self._contexts.size.n_cells, n_bytes, seconds))

    def _bytes_per_cell(self) -> int:
        now = self._contexts.size
        twice = ContextSize(2 * now.n_cells, now.n_sequences)
        return max((self._contexts.expected_bytes(twice) - self._contexts.expected_bytes(now)) // now.n_cells, 1)


def _slots(n_sequences: int, at_least: int) -> int:
    """Sequences that a context tells apart, so that it need not be replaced for each."""
    n_slots = at_least
    while n_slots < n_sequences:
        n_slots *= 2
    return min(n_slots, MOST_SEQUENCES)
