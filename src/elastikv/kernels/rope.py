"""Rotary position embedding (Su et al., arXiv:2104.09864): the angles of positions, and K moved to other positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, eq=False)
class Rope:
    """inv_freq: f32 ``[rotary_dim / 2]``, radians per position; attention_factor: multiplies cos and sin.

    Layers that rotate alike share one object, and its angles are computed once per ubatch.
    """

    inv_freq: torch.Tensor
    attention_factor: float = 1.0

    @property
    def half(self) -> int:
        """Half of the dimensions that are rotated, in half-split (NeoX) pairing."""
        return len(self.inv_freq)

    def angles(self, positions: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
        """cos and sin ``[n, half]`` of int64 positions ``[n]``, in f32 as the models were trained."""
        torch.mul(positions.unsqueeze(1).to(torch.float32), self.inv_freq, out=sin)
        torch.cos(sin, out=cos)
        torch.sin(sin, out=sin)
        if self.attention_factor != 1.0:
            cos.mul_(self.attention_factor)
            sin.mul_(self.attention_factor)

    def rotate(self, k: torch.Tensor, delta: int) -> torch.Tensor:
        """K ``[n, heads, d]`` as if computed ``delta`` positions later: rotations add up."""
        angle = self.inv_freq * delta
        cos, sin = angle.cos(), angle.sin()
        first, second, rest = k.tensor_split((self.half, 2 * self.half), dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)
