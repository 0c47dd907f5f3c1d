"""Matrices that multiply: dense or packed, several fused into one call.

The kernels multiply; a packed type that they do not know is unpacked here, a tile of rows at a time.
"""

from __future__ import annotations

import torch

from elastikv.kernels.base import Kernels, LinearPart, PackedTensor, Weight
from elastikv.weights import quants


class FusedLinear:
    """One or more matrices over the same input, their outputs side by side."""

    def __init__(self, parts: list[tuple[Weight, torch.Tensor | None]], kernels: Kernels) -> None:
        self._kernels = kernels
        self.parts: list[LinearPart] = []
        start = 0
        for weight, bias in parts:
            stop = start + weight.shape[0]
            self.parts.append(LinearPart(weight, bias, slice(start, stop)))
            start = stop
        self.n_out = start
        self.n_in = parts[0][0].shape[1]
        self.nbytes = sum(weight.nbytes + (0 if bias is None else bias.nbytes) for weight, bias in parts)

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        if out is None:
            out = torch.empty((x.shape[0], self.n_out), dtype=torch.float32)
        if len(self.parts) == 1:
            self._multiply(self.parts[0], x, out)
        else:
            for part in self.parts:
                self._multiply(part, x, out[:, part.columns])
        return out

    def _multiply(self, part: LinearPart, x: torch.Tensor, out: torch.Tensor) -> None:
        weight = part.weight
        if isinstance(weight, PackedTensor) and weight.type not in self._kernels.packed_types:
            self._multiply_unpacked(weight, part.bias, x, out)
        else:
            self._kernels.linear(x, weight, part.bias, out)

    def _multiply_unpacked(
        self, weight: PackedTensor, bias: torch.Tensor | None, x: torch.Tensor, out: torch.Tensor
    ) -> None:
        for rows in quants.row_tiles(*weight.shape):
            tile = quants.unpack(weight.data[rows], weight.type)
            self._kernels.linear(x, tile, None if bias is None else bias[rows], out[:, rows])


class Embedding:
    """Rows of a matrix by token, in f32."""

    def __init__(self, weight: Weight) -> None:
        self.weight = weight
        self.n_vocab, self.width = weight.shape
        self.nbytes = weight.nbytes

    def __call__(self, token_ids: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """token_ids int64 ``[n]``; out f32 ``[n, width]``."""
        if isinstance(self.weight, PackedTensor):
            return quants.unpack(self.weight.data[token_ids], self.weight.type, out)
        if self.weight.dtype == torch.float32:
            return torch.index_select(self.weight, 0, token_ids, out=out)
        return out.copy_(self.weight[token_ids])
