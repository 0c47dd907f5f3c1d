"""What a row is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Plane:
    """One tensor of a layer: ``[rows, *shape]``, rows contiguous. A row is one cell's part of it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def view(self, data: torch.Tensor, n_rows: int) -> torch.Tensor:
        """The first ``n_rows`` rows of a uint8 tensor that starts with this plane."""
        return data[: n_rows * self.row_bytes].view(self.dtype).view(n_rows, *self.shape)


LayerPlanes = tuple[Plane, ...]


def bytes_per_row(layers: Sequence[LayerPlanes]) -> int:
    """Bytes of one cell in all layers."""
    return sum(plane.row_bytes for layer in layers for plane in layer)


def rows_per_page(layers: Sequence[LayerPlanes], page_bytes: int) -> int:
    """Rows that the narrowest step of all planes can hold: what ``exact`` rounds to."""
    return max(1, min(page_bytes // plane.row_bytes for layer in layers for plane in layer))
