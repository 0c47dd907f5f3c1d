"""Bookkeeping of one stream: which cells hold which positions. Integers only; holds no tensors.

    cell      0 ......... used-1 | used ....... capacity-1
    position  first ...... end-1 | free: may hold anything

Cells are contiguous, and so are their positions. How many there are (the capacity) is the storage's to say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(slots=True)
class StreamCells:
    """Cells ``[0, used)`` hold positions ``[first, first + used)``."""

    first: int = 0
    used: int = 0

    @property
    def end(self) -> int:
        """The position that the next token gets."""
        return self.first + self.used

    def copy(self) -> StreamCells:
        """A copy to simulate on."""
        return replace(self)

    def rows(self, p0: int, p1: int) -> tuple[int, int]:
        """Used cells ``[r0, r1)`` that hold positions ``[p0, p1)``; ``p1 < 0`` means to the end.

        Positions that are not held are left out; ``r0 == r1`` if none is.
        """
        start = min(max(p0 - self.first, 0), self.used)
        stop = self.used if p1 < 0 else min(max(p1 - self.first, 0), self.used)
        return start, max(start, stop)

    def append(self, n_cells: int) -> None:
        """Count the next ``n_cells`` cells as used."""
        self.used += n_cells

    def remove(self, r0: int, r1: int) -> None:
        """Count cells ``[r0, r1)`` as removed; those behind have moved down.

        At the front the others keep their positions; elsewhere the ones behind move down with their cells.
        """
        n_dropped = r1 if r0 == 0 and r1 < self.used else 0
        self.first, self.used = self.first + n_dropped, self.used - (r1 - r0)

    def check(self) -> None:
        """Raise AssertionError if an invariant does not hold."""
        assert self.used >= 0, f"{self.used} cells are used"
        assert self.first >= 0, f"first position is {self.first}"
