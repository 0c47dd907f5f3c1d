"""Packed weights: GGUF's block formats, tile by tile.

A packed matrix is uint8 ``[n_out, row_bytes]``; a row is a sequence of blocks along ``n_in``, laid out as
in a GGUF file (q8_0: 32 values as a 16-bit scale and 32 int8; q4_0: a 16-bit scale and 16 bytes of nibbles).
Packing, and unpacking the commonest formats (``unpacking.py``), give the `gguf` package's bits, in torch because it
then runs on all cores; the package itself unpacks the others. All are applied to a few rows at a time, so that a
conversion needs the input, the output and one tile, never an f32 copy of the whole matrix.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf import quants as gguf_quants

from elastikv.errors import InvalidRequest, UnsupportedModel
from elastikv.kernels.unpacking import UNPACKERS

TILE_VALUES = 1 << 20
"""Values converted at once: 4 MiB of f32, small beside a model, large beside a call's overhead."""

TARGETS = ("q8_0", "q4_0")
"""Formats that weights can be packed into."""


def block_sizes(kind: str) -> tuple[int, int]:
    """Values and bytes of one block, e.g. ``(32, 34)`` for ``"q8_0"``. Raises UnsupportedModel for unknown kinds."""
    sizes: tuple[int, int] = GGML_QUANT_SIZES[_ggml_type(kind)]
    return sizes


def row_bytes(kind: str, n_in: int) -> int:
    """Bytes of a packed row of ``n_in`` values. Raises InvalidRequest if the blocks do not divide it."""
    block_values, block_bytes = block_sizes(kind)
    if n_in % block_values:
        raise InvalidRequest(f"{kind} packs {block_values} values at a time; a row of {n_in} does not divide")
    return n_in // block_values * block_bytes


def row_values(kind: str, n_bytes: int) -> int:
    """Values in a packed row of ``n_bytes``: the inverse of ``row_bytes``."""
    block_values, block_bytes = block_sizes(kind)
    return n_bytes // block_bytes * block_values


def pack(weight: torch.Tensor, kind: str) -> torch.Tensor:
    """Quantise ``[n_out, n_in]`` (f32, f16 or bf16) to uint8 ``[n_out, row_bytes]``.

    Raises InvalidRequest for another kind than q8_0 and q4_0, or if its blocks do not divide a row.
    """
    n_out, n_in = weight.shape
    packed = torch.empty((n_out, row_bytes(_target(kind), n_in)), dtype=torch.uint8)
    for rows in row_tiles(n_out, n_in):
        packed[rows] = _quantize(weight[rows].float(), kind)
    return packed


def unpack(blocks: torch.Tensor, kind: str, out: torch.Tensor | None = None) -> torch.Tensor:
    """Dequantise uint8 ``[n_out, row_bytes]`` to ``[n_out, n_in]``: into ``out`` (any float dtype), or new f32."""
    n_out, n_in = blocks.shape[0], row_values(kind, blocks.shape[1])
    if out is None:
        out = torch.empty((n_out, n_in), dtype=torch.float32)
    for rows in row_tiles(n_out, n_in):
        out[rows] = _dequantize(blocks[rows], kind)
    return out


def repack(blocks: torch.Tensor, kind: str, target: str) -> torch.Tensor:
    """Convert packed rows, uint8 ``[n_out, row_bytes]``, from any format to ``target``.

    The target's quantisation error comes on top of what the weights carry already. For Gaussian weights it is, as
    relative rms: q8_0 0.5 %, q4_0 8 %; q4_k, q5_k or q6_k to q8_0 at most 0.6 % (``tests/kernels/test_quants.py``
    measures both). Raises InvalidRequest for another target than q8_0 and q4_0, or if its blocks do not divide a row.
    """
    if kind == target:
        return blocks
    n_out, n_in = blocks.shape[0], row_values(kind, blocks.shape[1])
    packed = torch.empty((n_out, row_bytes(_target(target), n_in)), dtype=torch.uint8)
    for rows in row_tiles(n_out, n_in):
        packed[rows] = _quantize(_dequantize(blocks[rows], kind), target)
    return packed


def can_unpack(kind: str) -> bool:
    """Whether ``unpack`` knows the format."""
    try:
        _dequantize(torch.zeros((1, block_sizes(kind)[1]), dtype=torch.uint8), kind)
    except (NotImplementedError, UnsupportedModel):
        return False
    return True


def row_tiles(n_out: int, n_in: int) -> Iterator[slice]:
    """Slices of whole rows that hold about ``TILE_VALUES`` values each."""
    step = max(TILE_VALUES // max(n_in, 1), 1)
    for start in range(0, n_out, step):
        yield slice(start, min(start + step, n_out))


def _target(kind: str) -> str:
    if kind not in TARGETS:
        raise InvalidRequest(f"cannot pack weights as {kind!r}; choose one of {', '.join(TARGETS)}")
    return kind


def _ggml_type(kind: str) -> GGMLQuantizationType:
    try:
        return GGMLQuantizationType[kind.upper()]
    except KeyError:
        raise UnsupportedModel(f"unknown tensor type {kind!r}") from None


def _quantize(rows: torch.Tensor, kind: str) -> torch.Tensor:
    """f32 rows to packed ones, with the bits that ggml's reference gives them."""
    blocks = rows.reshape(-1, block_sizes(kind)[0])
    scale, values = _PACKERS[kind](blocks)
    return torch.cat([scale.half().view(torch.uint8), values], dim=1).view(len(rows), -1)


def _pack_q8_0(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales ``[n, 1]`` and int8 ``[n, 32]`` as bytes; halves are rounded away from zero."""
    scale = blocks.abs().amax(1, keepdim=True) / 127
    scaled = blocks * torch.where(scale == 0, 0.0, 1 / scale)
    size = scaled.abs()
    whole = size.floor()
    whole += size - whole >= 0.5
    return scale, (whole * scaled.sign()).to(torch.int8).view(torch.uint8)


def _pack_q4_0(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales ``[n, 1]`` and nibbles ``[n, 16]``; the value of largest size becomes -8."""
    largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    scale = largest / -8
    scaled = blocks * torch.where(scale == 0, 0.0, 1 / scale)
    nibbles = (scaled + 8.5).to(torch.uint8).clamp_(max=15)
    return scale, nibbles[:, :16] | nibbles[:, 16:] << 4


_PACKERS = {"q8_0": _pack_q8_0, "q4_0": _pack_q4_0}


def _dequantize(rows: torch.Tensor, kind: str) -> torch.Tensor:
    """Packed rows to f32 ones."""
    unpack_blocks = UNPACKERS.get(kind)
    if unpack_blocks is None:
        return torch.from_numpy(gguf_quants.dequantize(rows.numpy(), _ggml_type(kind)))
    block_values, block_bytes = block_sizes(kind)
    values = torch.empty((len(rows), rows.shape[1] // block_bytes * block_values))
    unpack_blocks(rows.reshape(-1, block_bytes), values.view(-1, block_values))
    return values
