"""Cells that hold floating-point values as they are: f32, f16, bf16."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from typing_extensions import override

from elastikv.memory.formats.base import CellFormat
from elastikv.memory.storage.planes import LayerPlanes, Plane


class PlainFormat(CellFormat):
    """One plane with the values, in one of torch's types."""

    dtype: torch.dtype

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name = name
        self.dtype = dtype

    @override
    def planes(self, name: str, n_heads: int, dim: int) -> LayerPlanes:
        return (Plane(name, (n_heads, dim), self.dtype),)

    @override
    def store(self, values: torch.Tensor, planes: Sequence[torch.Tensor]) -> None:
        planes[0].copy_(values)

    @override
    def load(self, planes: Sequence[torch.Tensor], dim: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return planes[0].to(dtype, copy=True)


F32 = PlainFormat("f32", torch.float32)
F16 = PlainFormat("f16", torch.float16)
BF16 = PlainFormat("bf16", torch.bfloat16)
