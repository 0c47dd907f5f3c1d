"""Frequencies of rotary position embedding under each scaling."""

from __future__ import annotations

import math

import torch

from elastikv.kernels.rope import Rope
from elastikv.weights.config import RopeConfig


def make_rope(config: RopeConfig) -> Rope:
    return Rope(_frequencies(config), _attention_factor(config))


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
