"""Rotary position embedding: what a config says of it, and the frequencies under each scaling."""

from __future__ import annotations

import math
from typing import get_args

import torch

from elastikv.errors import CorruptFile
from elastikv.kernels.rope import Rope
from elastikv.models.config import RopeConfig, RopeKind
from elastikv.weights.base import Fields

_KINDS = get_args(RopeKind)
_OPTIONAL = (
    "low_freq_factor",
    "high_freq_factor",
    "beta_fast",
    "beta_slow",
    "attention_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "freq_factors",
)


def read_rope(
    fields: Fields, architecture: str, head_dim: int, *, partial: bool = False, layer_type: str | None = None
) -> RopeConfig:
    """partial: whether transformers rotates a part of each head in this architecture, where the config says so.

    layer_type: whose, as config.json calls it, where layers differ. Raises UnsupportedModel for other scaling.
    """
    given = fields.rope_parameters(_KINDS, {"partial_rotary_factor"} if partial else (), layer_type)
    n_ctx = fields["max_position_embeddings"]
    n_ctx_original = given.get("original_max_position_embeddings") or n_ctx
    kind, dim = given["rope_type"], given.get("rotary_dim")
    if dim is None:
        honoured = partial or kind != "default"
        dim = int(head_dim * given.get("partial_rotary_factor", 1.0)) if honoured else head_dim
        if dim != head_dim and not partial:
            raise CorruptFile(
                f"{fields.name}: partial_rotary_factor with RoPE scaling {kind!r} is nothing that {architecture} has"
            )
    return RopeConfig(
        dim=dim,
        theta=float(given["rope_theta"]),
        kind=kind,
        factor=float(given.get("factor") or (n_ctx / n_ctx_original)),
        n_ctx_original=n_ctx_original,
        **{field: given[field] for field in _OPTIONAL if given.get(field) is not None},
    )


def make_rope(config: RopeConfig, device: torch.device | str = "cpu") -> Rope:
    """The frequencies, on a device, and the scale of cos and sin that a config describes."""
    return Rope(_frequencies(config).to(device), _attention_factor(config))


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
