"""Rotary position embedding: frequencies under each scaling, and K moved to other positions."""

from __future__ import annotations

import math

import torch

from elastikv.weights.config import RopeConfig


class Rope:
    """inv_freq: f32 ``[dim / 2]``, radians per position; attention_factor: multiplies cos and sin."""

    def __init__(self, config: RopeConfig) -> None:
        self.dim = config.dim
        self.inv_freq = _frequencies(config)
        self.attention_factor = _attention_factor(config)

    def angles(self, positions: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
        """cos and sin ``[n, dim / 2]`` of int64 positions ``[n]``, in f32 as the models were trained."""
        torch.mul(positions.unsqueeze(1).to(torch.float32), self.inv_freq, out=sin)
        torch.cos(sin, out=cos)
        torch.sin(sin, out=sin)
        if self.attention_factor != 1.0:
            cos.mul_(self.attention_factor)
            sin.mul_(self.attention_factor)

    def rotate_k(self, layer: int, k: torch.Tensor, delta: int) -> torch.Tensor:
        """K ``[n, heads, d]`` as if computed ``delta`` positions later: rotations add up. All layers rotate alike."""
        angle = self.inv_freq * delta
        cos, sin = angle.cos(), angle.sin()
        half = self.dim // 2
        first, second = k[..., :half], k[..., half : self.dim]
        moved = (first * cos - second * sin, second * cos + first * sin, k[..., self.dim :])
        return torch.cat(moved, dim=-1)


def _frequencies(config: RopeConfig) -> torch.Tensor:
    exponents = torch.arange(0, config.dim, 2, dtype=torch.float32) / config.dim
    plain = 1.0 / (config.theta**exponents)
    if config.kind == "linear":
        scaled = plain / config.factor
    elif config.kind == "llama3":
        scaled = _llama3(plain, config)
    elif config.kind == "yarn":
        scaled = _yarn(plain, config)
    else:
        scaled = plain
    if config.freq_factors is not None:
        scaled = scaled / torch.tensor(config.freq_factors, dtype=torch.float32)
    return scaled


def _llama3(plain: torch.Tensor, config: RopeConfig) -> torch.Tensor:
    """Llama 3.1: long waves are stretched by ``factor``, short ones stay, those between are blended."""
    turns = config.n_ctx_original * plain / (2 * math.pi)  # a frequency makes in the original context
    keep = ((turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)).clamp(0, 1)
    return (1 - keep) * plain / config.factor + keep * plain


def _yarn(plain: torch.Tensor, config: RopeConfig) -> torch.Tensor:
    """YaRN (Peng et al., arXiv:2309.00071): as llama3, but blended linearly in the dimension's index."""

    def index_of(turns: float) -> float:
        wave = config.n_ctx_original / (turns * 2 * math.pi)
        return config.dim * math.log(wave) / (2 * math.log(config.theta))

    low, high = index_of(config.beta_fast), index_of(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.dim - 1)
    if low == high:
        high += 0.001  # a step instead of a ramp
    indices = torch.arange(config.dim // 2, dtype=torch.float32)
    keep = 1 - ((indices - low) / (high - low)).clamp(0, 1)
    return plain / config.factor * (1 - keep) + plain * keep


def _attention_factor(config: RopeConfig) -> float:
    if config.attention_factor is not None:
        return config.attention_factor
    if config.kind != "yarn":
        return 1.0
    if config.mscale and config.mscale_all_dim:
        return _mscale(config.factor, config.mscale) / _mscale(config.factor, config.mscale_all_dim)
    return _mscale(config.factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0
