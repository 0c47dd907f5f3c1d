"""``x @ weight.T``: packed weights with x in 8 bits; dense ones by kernels that read them once, or by torch's GEMM."""

from __future__ import annotations

import torch

from elastikv.kernels.cpu.formats import WEIGHTS
from elastikv.kernels.cpu.formats.layout import Layout
from elastikv.kernels.cpu.formats.plain import BF16, F16, F32
from elastikv.kernels.cpu.formats.weights import BlockLayout
from elastikv.kernels.cpu.matmul import gemm_int8
from elastikv.kernels.cpu.matmul.arguments import Matrix
from elastikv.kernels.cpu.matmul.dequantise import dequantise
from elastikv.kernels.cpu.matmul.skinny import Product, multiply_rows, product_of
from elastikv.kernels.cpu.simd import features
from elastikv.kernels.weights import PackedTensor, Weight

_DENSE: dict[torch.dtype, Layout] = {torch.float32: F32, torch.float16: F16, torch.bfloat16: BF16}

TILE_VALUES = 1 << 20
"""Weights dequantised at once, and results held at once before they become float32."""

INPUT_VALUES = 1 << 21
"""Values of x converted at once."""

SCRATCH_BYTES = max(4 * TILE_VALUES + 2 * INPUT_VALUES, gemm_int8.SCRATCH_BYTES)
"""Most that one product holds: a tile, and with bf16 results and inputs; or x in 8 bits."""

_ROW_MULTIPLE = 32
"""oneDNN compiles bf16 products anew for every number of rows, and keeps up to a gigabyte of code: rows are padded."""


def has_fast_bf16() -> bool:
    """Whether bf16 products are the fastest here."""
    return features.has_bf16()


def has_fast_int8() -> bool:
    """Whether products of 8-bit values are the fastest here."""
    return features.has_byte_products()


class LinearKernel:
    """Multiplies with dense and packed weights, each the fastest way that this processor has.

    ============== ======================== ========================= ==============================
    weights        one row of x             a few rows                many rows
    ============== ======================== ========================= ==============================
    f32, f16       float32                  float32                   float32, f16 in float32 tiles
    bf16           float32                  bf16 (error 0.2 %)        bf16 (0.3 %)
    packed         8-bit x (0.5 %)          8-bit x (0.5 %)           8-bit x (0.5 %)
    ============== ======================== ========================= ==============================

    Errors are the relative rms error of the output, beside what the weights lost when they were packed (q8_0 0.5 %,
    q4_0 8 %). 8-bit products need AVX2, bf16 AVX-512 BF16; without, it is float32, with weights dequantised in tiles.
    """

    def __init__(self) -> None:
        self._bf16 = has_fast_bf16()
        self._int8 = has_fast_int8()
        self._tile = torch.empty(0)

    def __call__(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor:
        """``x @ weight.T + bias``, see ``Kernels.linear``."""
        n, n_in = x.shape  # len() of a tensor costs as much as a small kernel
        product = self.product(weight)
        if n <= product.max_rows:
            rows = (x.data_ptr(), x.stride(0) * 4, n, out.data_ptr(), out.stride(0) * 4)
            multiply_rows(product, matrix_of(weight, bias), rows)
            return out
        step = max(INPUT_VALUES // n_in // _ROW_MULTIPLE, 1) * _ROW_MULTIPLE
        bf16 = self._in_bf16(weight)
        for start in range(0, n, step):
            piece = slice(start, start + step)
            self._multiply_tiles(_padded_bf16(x[piece]) if bf16 else x[piece], weight, out[piece])
        return out if bias is None else out.add_(bias)

    def product(self, weight: Weight) -> Product:
        """How rows are multiplied with this weight, up to its ``max_rows``."""
        (_, n_in), layout = weight.shape, _layout(weight)
        if isinstance(layout, BlockLayout) and self._int8:
            return product_of(layout, "int8", "int8")
        return product_of(layout, "f32", "bf16" if self._in_bf16(weight) and n_in % 32 == 0 else "f32")

    def _in_bf16(self, weight: Weight) -> bool:
        """Whether products of several rows are in bf16."""
        return self._bf16 and isinstance(weight, torch.Tensor) and weight.dtype == torch.bfloat16

    def _multiply_tiles(self, x: torch.Tensor, weight: Weight, out: torch.Tensor) -> None:
        """x may have more rows than ``out``."""
        n_out, n_in = weight.shape
        step = max(TILE_VALUES // max(n_in, len(x)), 1)
        for start in range(0, n_out, step):
            rows = slice(start, min(start + step, n_out))
            tile = self._dequantised(weight, rows, x.dtype)
            if x.dtype == torch.float32:
                torch.mm(x, tile.t(), out=out[:, rows])
            else:
                out[:, rows] = torch.mm(x, tile.t())[: len(out)]

    def _dequantised(self, weight: Weight, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """Rows of the weight as float32, in a tile that the next call reuses; as they are if that is ``dtype``."""
        if isinstance(weight, torch.Tensor) and weight.dtype == dtype:
            return weight[rows]
        data, layout, n_in = _data(weight), _layout(weight), weight.shape[1]
        n_values = (rows.stop - rows.start) * n_in
        if len(self._tile) < n_values:
            self._tile = torch.empty(n_values)
        tile = self._tile[:n_values].view(-1, n_in)
        address = data.data_ptr() + rows.start * data.stride(0) * data.element_size()
        dequantise(layout, address, data.stride(0) * data.element_size(), len(tile), n_in, tile.data_ptr())
        return tile


def _padded_bf16(x: torch.Tensor) -> torch.Tensor:
    """x in bf16, with rows of zeros up to the next multiple."""
    n = len(x)
    padded = torch.empty((-(-n // _ROW_MULTIPLE) * _ROW_MULTIPLE, x.shape[1]), dtype=torch.bfloat16)
    padded[:n] = x
    padded[n:] = 0
    return padded


def matrix_of(weight: Weight, bias: torch.Tensor | None) -> Matrix:
    """Addresses and sizes of a weight ``[n_out, n_in]`` and its bias, for kernels."""
    data, (n_out, n_in) = _data(weight), weight.shape
    return data.data_ptr(), data.stride(0) * data.element_size(), n_out, n_in, 0 if bias is None else bias.data_ptr()


def _data(weight: Weight) -> torch.Tensor:
    return weight.data if isinstance(weight, PackedTensor) else weight


def _layout(weight: Weight) -> Layout:
    return WEIGHTS[weight.type] if isinstance(weight, PackedTensor) else _DENSE[weight.dtype]
