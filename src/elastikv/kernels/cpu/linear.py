"""``x @ weight.T``: few rows by a kernel that reads the weights once, many rows by matrix products of widened tiles."""

from __future__ import annotations

import torch

from elastikv.kernels.base import PackedTensor, Weight
from elastikv.kernels.cpu import gemv, gemv_bf16, gemv_int8, x86
from elastikv.kernels.cpu.blocks import OF_TYPE, Q4_0_BLOCKS
from elastikv.kernels.cpu.layouts import BF16, F32, OF_DTYPE, Layout

TILE_VALUES = 1 << 20
"""Weights widened at once, and results held at once before they become float32."""

INPUT_VALUES = 1 << 21
"""Values of x converted at once."""

SCRATCH_BYTES = 4 * TILE_VALUES + 2 * INPUT_VALUES
"""Most that one product holds: a tile, and either nothing else (float32) or results and inputs in bf16."""

_FEW_ROWS = 8
_FEW_ROWS_BF16 = 16
"""Rows of x up to which reading the weights once beats matrix products; the second, for products in bf16."""

_ROW_MULTIPLE = 32
"""oneDNN compiles bf16 products anew for every number of rows, and keeps up to a gigabyte of code: rows are padded."""


def has_fast_bf16() -> bool:
    """Whether bf16 products are the fastest here."""
    return x86.has_bf16()


def has_fast_int8() -> bool:
    """Whether products of 8-bit values are the fastest here."""
    return x86.has_vnni()


class LinearKernel:
    """Multiplies with dense and packed weights, each the fastest way that this processor has.

    ============ ======================== ========================= ==============================
    weights      one row of x             a few rows                many rows
    ============ ======================== ========================= ==============================
    f32, f16     float32                  float32                   float32, f16 widened in tiles
    bf16         float32                  bf16 (error 0.2 %)        bf16 (0.3 %)
    q8_0         float32                  bf16 (0.2 %)              bf16, unpacked in tiles (0.3 %)
    q4_0         8-bit x (0.5 %)          bf16 (0.2 %)              bf16, unpacked in tiles (0.3 %)
    ============ ======================== ========================= ==============================

    Errors are the relative rms error of the output, beside what the weights lost when they were packed (q8_0 0.5 %,
    q4_0 8 %). Without AVX-512's bf16 and 8-bit instructions, all of it is float32.
    """

    def __init__(self) -> None:
        self._bf16 = has_fast_bf16()
        self._int8 = has_fast_int8()
        self._tile = torch.empty(0, dtype=torch.uint8)

    def __call__(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor:
        n, n_in = x.shape  # len() of a tensor costs as much as a small kernel
        bf16 = self._bf16 and n > 1 and (isinstance(weight, PackedTensor) or weight.dtype == torch.bfloat16)
        if n <= (_FEW_ROWS_BF16 if bf16 else _FEW_ROWS) and not (bf16 and n_in % 32):
            self._few_rows(x, weight, bias, bf16, out)
            return out
        step = max(INPUT_VALUES // n_in // _ROW_MULTIPLE, 1) * _ROW_MULTIPLE
        for start in range(0, n, step):
            rows = slice(start, start + step)
            self._multiply_tiles(_padded_bf16(x[rows]) if bf16 else x[rows], weight, out[rows])
        return out if bias is None else out.add_(bias)

    def _few_rows(
        self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None, bf16: bool, out: torch.Tensor
    ) -> None:
        data, layout = _data(weight)
        n = x.shape[0]
        n_out, n_in = weight.shape
        matrix = (layout, data.data_ptr(), data.stride(0) * data.element_size(), n_out, n_in)
        bias_address, stride = 0 if bias is None else bias.data_ptr(), out.stride(0) * 4
        if bf16:
            x = x.to(torch.bfloat16, memory_format=torch.contiguous_format)
            gemv_bf16.multiply(*matrix, x.data_ptr(), n, bias_address, out.data_ptr(), stride)
        elif n == 1 and self._int8 and layout is Q4_0_BLOCKS and n_in % 64 == 0:
            gemv_int8.multiply(*matrix, x.data_ptr(), bias_address, out.data_ptr())
        else:
            gemv.multiply(*matrix, x.data_ptr(), x.stride(0) * 4, n, bias_address, out.data_ptr(), stride)

    def _multiply_tiles(self, x: torch.Tensor, weight: Weight, out: torch.Tensor) -> None:
        n_out, n_in = weight.shape
        """x may have more rows than ``out``."""
        step = max(TILE_VALUES // max(n_in, len(x)), 1)
        for start in range(0, n_out, step):
            rows = slice(start, min(start + step, n_out))
            tile = self._widened(weight, rows, x.dtype)
            if x.dtype == torch.float32:
                torch.mm(x, tile.t(), out=out[:, rows])
            else:
                out[:, rows] = torch.mm(x, tile.t())[: len(out)]

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


def _padded_bf16(x: torch.Tensor) -> torch.Tensor:
    """x in bf16, with rows of zeros up to the next multiple."""
    n = len(x)
    padded = torch.empty((-(-n // _ROW_MULTIPLE) * _ROW_MULTIPLE, x.shape[1]), dtype=torch.bfloat16)
    padded[:n] = x
    padded[n:] = 0
    return padded


def _data(weight: Weight) -> tuple[torch.Tensor, Layout]:
    if isinstance(weight, PackedTensor):
        return weight.data, OF_TYPE[weight.type]
    return weight, OF_DTYPE[weight.dtype]
