"""Mistral (Jiang et al., arXiv:2310.06825): the plain decoder with a window, which later models dropped."""

from __future__ import annotations

from typing_extensions import override

from elastikv.models.architecture import Architecture
from elastikv.models.config import LayerType, ModelConfig
from elastikv.models.llama import neighbours_rotate
from elastikv.weights.base import Fields
from elastikv.weights.gguf import Change
from elastikv.weights.hf import HFConfig


class Mistral(Architecture):
    """The plain decoder with a sliding window in all layers, or none."""

    name = "mistral"
    classes = ("MistralForCausalLM",)
    model_types = ("mistral",)
    gguf_name = "llama"  # is read as a Llama
    has_window = True

    @override
    def read_hf_config(self, config: HFConfig) -> ModelConfig:
        """With ``layer_types``, transformers takes another of its classes."""
        return self.config(config.fields("ministral" if "layer_types" in config else "mistral"))

    @override
    def layer_types(self, fields: Fields) -> tuple[LayerType, ...]:
        if "layer_types" not in fields:
            kind: LayerType = "full" if fields["sliding_window"] is None else "sliding"
            kinds: tuple[LayerType, ...] = (kind,) * fields["num_hidden_layers"]
            return kinds
        return super().layer_types(fields)

    @override
    def gguf_change(self, config: ModelConfig, name: str) -> Change:
        return neighbours_rotate(config, name)
