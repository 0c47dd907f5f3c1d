"""``x @ weight.T``: few rows by a kernel that reads the weights once, many rows by matrix products of widened tiles."""

from __future__ import annotations

import torch

from elastikv.kernels.base import PackedTensor, Weight
from elastikv.kernels.cpu import gemv
from elastikv.kernels.cpu.blocks import OF_TYPE
from elastikv.kernels.cpu.layouts import BF16, F32, OF_DTYPE, Layout

TILE_VALUES = 1 << 20
"""Weights widened at once, and results held at once before they become float32."""

INPUT_VALUES = 1 << 21
"""Values of x converted at once."""

SCRATCH_BYTES = 4 * TILE_VALUES + 2 * INPUT_VALUES
"""Most that one product holds: a tile, and either nothing else (float32) or results and inputs in bf16."""

MAX_FEW_ROWS = 8
"""Rows of x up to which the kernel that reads the weights once is the faster one."""


def has_fast_bf16() -> bool:
    """Whether this processor multiplies bf16 matrices natively (AVX-512 BF16 or AMX)."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class LinearKernel:
    """Multiplies with dense and packed weights.

    Many rows times bf16 or packed weights are bf16 products where the processor has them: a relative rms error of
    about 0.3 %, beside the 0.5 % (q8_0) or 8 % (q4_0) that packing costs. Everything else is done in float32.
    """

    def __init__(self) -> None:
        self._fast_bf16 = has_fast_bf16()
        self._tile = torch.empty(0, dtype=torch.uint8)

    def __call__(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor:
        if len(x) <= MAX_FEW_ROWS:
            self._few_rows(x, weight, bias, out)
        else:
            self._many_rows(x, weight, out)
            if bias is not None:
                out.add_(bias)
        return out

    def _few_rows(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None, out: torch.Tensor) -> None:
        data, layout = _data(weight)
        n_out, n_in = weight.shape
        bias_address = 0 if bias is None else bias.data_ptr()
        gemv.multiply(
            layout, data.data_ptr(), data.stride(0) * data.element_size(), n_out, n_in,
            x.data_ptr(), x.stride(0) * 4, len(x), bias_address, out.data_ptr(), out.stride(0) * 4,
        )  # fmt: skip

    def _many_rows(self, x: torch.Tensor, weight: Weight, out: torch.Tensor) -> None:
        exact = isinstance(weight, torch.Tensor) and weight.dtype != torch.bfloat16
        dtype = torch.bfloat16 if self._fast_bf16 and not exact else torch.float32
        step = max(INPUT_VALUES // weight.shape[1], 1)
        for start in range(0, len(x), step):
            rows = slice(start, start + step)
            self._multiply_tiles(x[rows].to(dtype), weight, out[rows])

    def _multiply_tiles(self, x: torch.Tensor, weight: Weight, out: torch.Tensor) -> None:
        n_out, n_in = weight.shape
        step = max(TILE_VALUES // max(n_in, len(x)), 1)
        for start in range(0, n_out, step):
            rows = slice(start, min(start + step, n_out))
            tile = self._widened(weight, rows, x.dtype)
            if x.dtype == torch.float32:
                torch.mm(x, tile.t(), out=out[:, rows])
            else:
                out[:, rows] = torch.mm(x, tile.t())

    def _widened(self, weight: Weight, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """Rows of the weight in ``dtype``: its own where it is that, else a tile that the next call reuses."""
        if isinstance(weight, torch.Tensor) and weight.dtype == dtype:
            return weight[rows]
        data, layout = _data(weight)
        n_in = weight.shape[1]
        n_bytes = (rows.stop - rows.start) * n_in * dtype.itemsize
        if self._tile.nbytes < n_bytes:
            self._tile = torch.empty(n_bytes, dtype=torch.uint8)
        tile = self._tile[:n_bytes].view(dtype).view(-1, n_in)
        target = F32 if dtype == torch.float32 else BF16
        address = data.data_ptr() + rows.start * data.stride(0) * data.element_size()
        gemv.widen(layout, target, address, data.stride(0) * data.element_size(), len(tile), n_in, tile.data_ptr())
        return tile


def _data(weight: Weight) -> tuple[torch.Tensor, Layout]:
    if isinstance(weight, PackedTensor):
        return weight.data, OF_TYPE[weight.type]
    return weight, OF_DTYPE[weight.dtype]
