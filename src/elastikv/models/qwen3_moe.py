"""Qwen3-MoE (Yang et al., arXiv:2505.09388): Qwen3 with experts in place of the MLP, in all or most layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from typing_extensions import override

from elastikv.kernels.weights import FeedForwardWeights
from elastikv.models.architecture import Architecture
from elastikv.models.config import ExpertsConfig, LayerType, ModelConfig
from elastikv.models.reader import ModelReader, experts_tensors
from elastikv.weights.base import Fields
from elastikv.weights.gguf import GGUFFields
from elastikv.weights.gguf.header import GGUFHeader

EXPERTS_KEYS = {
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}
"""Fields that Qwen's layers of experts have, and their keys in a GGUF."""


def read_experts(fields: Fields, *, normalised: bool, shared_width: int = 0) -> ExpertsConfig:
    """The config of Qwen's layers of experts, from the fields of ``EXPERTS_KEYS``."""
    return ExpertsConfig(
        n_experts=fields["num_experts"],
        n_used=fields["num_experts_per_tok"],
        width=fields["moe_intermediate_size"],
        normalised=normalised,
        shared_width=shared_width,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen3MoeConfig(ModelConfig):
    """A config with experts. dense_layers: indices of the layers that have an MLP instead."""

    experts: ExpertsConfig
    dense_layers: tuple[int, ...]


class Qwen3Moe(Architecture):
    """Qwen3 with experts in place of the MLP, in all or most layers."""

    name = "qwen3_moe"
    classes = ("Qwen3MoeForCausalLM",)
    model_types = ("qwen3_moe",)
    gguf_name = "qwen3moe"
    gguf_keys: ClassVar = {**EXPERTS_KEYS, "norm_topk_prob": "expert_weights_norm"}
    qk_norm = True
    has_attention_bias = True

    @override
    def config(self, fields: Fields) -> Qwen3MoeConfig:
        experts = read_experts(fields, normalised=bool(fields["norm_topk_prob"]))
        plain, every = fields["mlp_only_layers"] or (), fields["decoder_sparse_step"] or 1
        config = super().config(fields)
        dense = (layer for layer in range(config.n_layers) if layer in plain or (layer + 1) % every)
        return Qwen3MoeConfig.extending(config, experts=experts, dense_layers=tuple(dense))

    @override
    def layer_types(self, fields: Fields) -> tuple[LayerType, ...]:
        """A window is that of all layers."""
        if isinstance(fields, GGUFFields):
            return super().layer_types(fields)
        is_sliding = fields["use_sliding_window"] and fields["sliding_window"]
        kinds: tuple[LayerType, ...] = ("sliding" if is_sliding else "full",) * fields["num_hidden_layers"]
        return kinds

    @override
    def gguf_fields(self, header: GGUFHeader) -> dict[str, Any]:
        """llama.cpp always normalises, and converters say nothing of it."""
        return {"norm_topk_prob": header.of_architecture("expert_weights_norm", True)}

    @override
    def layer_tensors(self, config: ModelConfig) -> Sequence[str]:
        assert isinstance(config, Qwen3MoeConfig)
        return (*super().layer_tensors(config), *experts_tensors(config.experts))

    @override
    def feed_forward(self, read: ModelReader, layer: int) -> FeedForwardWeights:
        config = read.config
        assert isinstance(config, Qwen3MoeConfig)
        if layer in config.dense_layers:
            return super().feed_forward(read, layer)
        return read.experts(layer, config.experts)
