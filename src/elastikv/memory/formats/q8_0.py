"""q8_0 cells, by ggml's rule: 32 values share a float16 scale ``d = max|x| / 127`` and lie as ``round(x / d)``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from typing_extensions import override

from elastikv.memory.formats.base import CellFormat
from elastikv.memory.storage.planes import LayerPlanes, Plane

_BLOCK = 32


class Q8_0Format(CellFormat):  # noqa: N801
    """Two planes: int8 ``[n, n_heads, dim]``, and float16 scales ``[n, n_heads, ceil(dim / 32)]``."""

    name = "q8_0"
    dtype = None

    @override
    def planes(self, name: str, n_heads: int, dim: int) -> LayerPlanes:
        n_blocks = -(-dim // _BLOCK)
        return (
            Plane(name, (n_heads, dim), torch.int8),
            Plane(f"{name}_scale", (n_heads, n_blocks), torch.float16),
        )

    @override
    def store(self, values: torch.Tensor, planes: Sequence[torch.Tensor]) -> None:
        data, scales = planes
        values, dim = values.float(), values.shape[-1]
        padded = torch.nn.functional.pad(values, (0, -dim % _BLOCK))
        step = padded.unflatten(-1, (-1, _BLOCK)).abs().amax(-1) / 127
        inverse = torch.where(step > 0, 1 / step, step.new_zeros(()))
        data.copy_(torch.round(values * _spread(inverse, dim)))
        scales.copy_(step)

    @override
    def load(self, planes: Sequence[torch.Tensor], dim: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        data, scales = planes
        return (data.float() * _spread(scales.float(), dim)).to(dtype)


def _spread(per_block: torch.Tensor, dim: int) -> torch.Tensor:
    """One number per block as one per value."""
    return per_block.repeat_interleave(_BLOCK, dim=-1)[..., :dim]


Q8_0 = Q8_0Format()
