"""What memory asks of a cell format, and K or V of one layer in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from elastikv.memory.storage.planes import LayerPlanes, bytes_per_row


class CellFormat(ABC):
    """How rows of K or V lie in cells, and how they are written and read.

    A row is ``n_heads`` heads of ``dim`` values. Fast kernels quantise and dequantise by code of their own; ``store``
    and ``load`` serve what moves cells (context shifts), the backend in plain torch, and the tests of the others.
    """

    name: str
    """What ``kv_dtype`` and ``--cache-type-k`` call it; kernels and saved sessions know the format by it."""

    dtype: torch.dtype | None
    """Type of the values, where the first plane holds just these, ``[n, n_heads, dim]``; None: they are packed."""

    @abstractmethod
    def planes(self, name: str, n_heads: int, dim: int) -> LayerPlanes:
        """The tensors that rows consist of, ``name`` first: the values, and what some of them have in common.

        At most two, and names that tell K's from V's: saved sessions have them.
        """

    @abstractmethod
    def store(self, values: torch.Tensor, planes: Sequence[torch.Tensor]) -> None:
        """Write values ``[n, n_heads, dim]``, of any floating-point type, into n rows of the planes."""

    @abstractmethod
    def load(self, planes: Sequence[torch.Tensor], dim: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """n rows of the planes as a new tensor ``[n, n_heads, dim]``."""

    def n_bytes(self, n_heads: int, dim: int) -> int:
        """Bytes of a row."""
        return bytes_per_row([self.planes("", n_heads, dim)])


@dataclass(frozen=True, slots=True)
class CellTensor:
    """K or V of one layer of one stream, whole capacity: ``[capacity, n_heads, dim]``, in a cell format.

    planes: as the format has them, ``[capacity, ...]`` each.
    """

    format: CellFormat
    n_heads: int
    dim: int
    planes: tuple[torch.Tensor, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(capacity, n_heads, dim)``."""
        return len(self.planes[0]), self.n_heads, self.dim

    def store(self, rows: slice, values: torch.Tensor) -> None:
        """Write values ``[n, n_heads, dim]``, of any floating-point type, into n rows."""
        self.format.store(values, [plane[rows] for plane in self.planes])

    def load(self, rows: slice) -> torch.Tensor:
        """Rows as a new float32 tensor ``[n, n_heads, dim]``."""
        return self.format.load([plane[rows] for plane in self.planes], self.dim)

    def view(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """Rows as ``[n, n_heads, dim]`` in ``dtype``, to be read only: the cells themselves where they are that."""
        if self.format.dtype == dtype:
            return self.planes[0][rows]
        return self.format.load([plane[rows] for plane in self.planes], self.dim, dtype)

    def addresses(self) -> tuple[int, int]:
        """Addresses of the first and the second plane; 0 if the format has one only."""
        first, second = (*(plane.data_ptr() for plane in self.planes), 0)[:2]
        return first, second
