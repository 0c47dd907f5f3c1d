"""Qwen3.5-MoE's text model: Qwen3.5 with experts in place of the MLP, one of which every token goes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from typing_extensions import override

from elastikv.kernels.weights import FeedForwardWeights
from elastikv.models.config import ExpertsConfig, ModelConfig
from elastikv.models.qwen3_5 import Qwen3_5
from elastikv.models.qwen3_moe import EXPERTS_KEYS, read_experts
from elastikv.models.reader import ModelReader, experts_tensors
from elastikv.weights.base import Fields
from elastikv.weights.gguf import Change
from elastikv.weights.gguf.header import GGUFHeader


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen3_5MoeConfig(ModelConfig):  # noqa: N801, its name
    """A config with experts in every layer."""

    experts: ExpertsConfig


class Qwen3_5Moe(Qwen3_5):  # noqa: N801, its name
    """Qwen3.5 with experts, one of which every token goes to, in place of the MLP."""

    name = "qwen3_5_moe"
    classes = ("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration")
    model_types = ("qwen3_5_moe_text", "qwen3_5_moe")
    gguf_name = "qwen35moe"
    gguf_keys: ClassVar = {
        **Qwen3_5.gguf_keys,
        **EXPERTS_KEYS,
        "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    }

    @override
    def config(self, fields: Fields) -> Qwen3_5MoeConfig:
        experts = read_experts(fields, normalised=True, shared_width=fields["shared_expert_intermediate_size"])
        # Its config has no width of an MLP: that of what every token goes through.
        config = replace(super().config(fields), intermediate_size=experts.shared_width)
        return Qwen3_5MoeConfig.extending(config, experts=experts)

    @override
    def gguf_fields(self, header: GGUFHeader) -> dict[str, Any]:
        """``feed_forward_length`` is not in every file, and means nothing here."""
        return {**super().gguf_fields(header), "intermediate_size": 0}

    @override
    def layer_tensors(self, config: ModelConfig) -> Sequence[str]:
        assert isinstance(config, Qwen3_5MoeConfig)
        return (*super().layer_tensors(config), *experts_tensors(config.experts))

    @override
    def gguf_change(self, config: ModelConfig, name: str) -> Change:
        return Change(squeezed=0) if name.endswith("shared_expert_gate.weight") else super().gguf_change(config, name)

    @override
    def feed_forward(self, read: ModelReader, layer: int) -> FeedForwardWeights:
        assert isinstance(read.config, Qwen3_5MoeConfig)
        return read.experts(layer, read.config.experts)
