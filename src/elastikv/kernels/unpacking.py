"""GGUF's commonest block formats to float32, in torch: the `gguf` package's bits in a tenth of its time.

Each function takes blocks, uint8 ``[n, block_bytes]``, and writes their values to out, float32 ``[n, block_values]``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def _halves(blocks: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """float32 of the 16-bit numbers in these bytes of each block."""
    return blocks[:, start:stop].contiguous().view(torch.float16).float()


def _q8_0(blocks: torch.Tensor, out: torch.Tensor) -> None:
    torch.mul(blocks[:, 2:].view(torch.int8), _halves(blocks, 0, 2), out=out)


def _q4_0(blocks: torch.Tensor, out: torch.Tensor) -> None:
    nibbles, values = blocks[:, 2:], out.view(-1, 2, 16)
    values[:, 0], values[:, 1] = nibbles & 15, nibbles >> 4
    out.sub_(8).mul_(_halves(blocks, 0, 2))


def _sub_blocks(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and minima ``[n, 8, 1]`` of q4_k and q5_k, each of 6 bits times one number of the block."""
    d, packed = _halves(blocks, 0, 4), blocks[:, 4:16]
    low, middle, high = packed.split(4, dim=1)
    scales = torch.cat([low & 63, (high & 15) | (low >> 2 & 48)], dim=1)
    minima = torch.cat([middle & 63, (high >> 4) | (middle >> 2 & 48)], dim=1)
    return (scales * d[:, :1]).unsqueeze(2), (minima * d[:, 1:]).unsqueeze(2)


def _q4_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    scales, minima = _sub_blocks(blocks)
    nibbles, values = blocks[:, 16:].unflatten(1, (4, 32)), out.view(-1, 8, 32)
    torch.mul(nibbles & 15, scales[:, 0::2], out=values[:, 0::2])
    torch.mul(nibbles >> 4, scales[:, 1::2], out=values[:, 1::2])
    values.sub_(minima)


def _q5_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    scales, minima = _sub_blocks(blocks)
    top, nibbles, values = blocks[:, 16:48], blocks[:, 48:].unflatten(1, (4, 32)), out.view(-1, 8, 32)
    for index in range(8):
        low = nibbles[:, index // 2] >> 4 if index % 2 else nibbles[:, index // 2] & 15
        torch.mul(low | (top >> index & 1) << 4, scales[:, index], out=values[:, index])
    values.sub_(minima)


def _q6_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    low, top = blocks[:, :128].unflatten(1, (2, 64)), blocks[:, 128:192].unflatten(1, (2, 32))
    scales = blocks[:, 192:208].view(torch.int8) * _halves(blocks, 208, 210)
    values = out.view(-1, 2, 4, 32)  # of each half: 64 values from the low nibbles, 64 from the high ones
    for index in range(4):
        first = index % 2 * 32
        nibbles = low[:, :, first : first + 32]
        nibbles = nibbles >> 4 if index >= 2 else nibbles & 15
        values[:, :, index] = nibbles | (top >> 2 * index & 3) << 4
    out.view(-1, 16, 16).sub_(32).mul_(scales.unsqueeze(2))


UNPACKERS: dict[str, Callable[[torch.Tensor, torch.Tensor], None]] = {
    "q8_0": _q8_0,
    "q4_0": _q4_0,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
}
