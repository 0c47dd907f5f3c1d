"""What a row is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from elastikv.memory.storage import pages


@dataclass(frozen=True, slots=True)
class Plane:
    """One tensor of a layer: ``[rows, *shape]``, rows contiguous. A row is one cell's part of it.

    With ``bands`` the tensor is ``[bands, rows, *shape]`` and every band grows at its own end:

        band 0  row row row ......    band 1  row row row ......
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    bands: int | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of a row (of one band of it)."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def n_bands(self) -> int:
        """Bands, one if rows are not split into any."""
        return 1 if self.bands is None else self.bands

    @property
    def row_dim(self) -> int:
        """Which dimension of the tensor counts rows."""
        return 0 if self.bands is None else 1

    def view(self, data: torch.Tensor, n_rows: int, band_bytes: int | None = None) -> torch.Tensor:
        """The first ``n_rows`` rows of a uint8 tensor that starts with this plane.

        ``band_bytes``: from the start of one band to the next; None: they touch.
        """
        band_bytes = n_rows * self.row_bytes if band_bytes is None else band_bytes
        n_bytes = (self.n_bands - 1) * band_bytes + n_rows * self.row_bytes
        n_values = math.prod(self.shape)
        strides = (band_bytes // self.dtype.itemsize, n_values, 1)
        rows = data[:n_bytes].view(self.dtype).as_strided((self.n_bands, n_rows, n_values), strides)
        unflattened: torch.Tensor = rows.unflatten(2, self.shape)
        return unflattened[0] if self.bands is None else unflattened


LayerPlanes = tuple[Plane, ...]


def bytes_per_row(layers: Sequence[LayerPlanes]) -> int:
    """Bytes of one cell in all layers."""
    return sum(plane.n_bands * plane.row_bytes for layer in layers for plane in layer)


def rows_per_page(layers: Sequence[LayerPlanes]) -> int:
    """Rows that fill a page of the widest plane: what ``exact`` rounds to."""
    return max(1, min(pages.PAGE // plane.row_bytes for layer in layers for plane in layer))
