"""What is known of a sequence in llama.cpp's memory: its number there, its tokens, and which cells it shares."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(slots=True)
class Checkpoint:
    """What cannot be taken back, as it was after ``n_tokens``."""

    n_tokens: int
    state: np.ndarray


@dataclass(slots=True)
class Sequence:
    """A sequence: positions ``[0, n_tokens)``. cells: a number for each of its cells; sharers have the same ones."""

    number: int
    cells: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    checkpoints: list[Checkpoint] = field(default_factory=list)

    @property
    def n_tokens(self) -> int:
        """How many tokens it has."""
        return len(self.cells)

    def truncate(self, n_tokens: int) -> None:
        """Forget the tokens from ``n_tokens`` on, and checkpoints behind them."""
        self.cells = self.cells[:n_tokens]
        self.checkpoints = [each for each in self.checkpoints if each.n_tokens <= n_tokens]


def n_distinct(cells: list[np.ndarray]) -> int:
    """Cells in use: those that are shared count once."""
    return len(np.unique(np.concatenate(cells))) if cells else 0
