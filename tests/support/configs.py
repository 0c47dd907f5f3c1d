"""Configs without files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from elastikv.models import registry
from elastikv.models.config import ModelConfig
from elastikv.weights.hf import HFConfig

QWEN3_5_27B_TEXT: dict[str, Any] = {
    "model_type": "qwen3_5_text",
    "vocab_size": 248320,
    "max_position_embeddings": 262144,
    "hidden_size": 5120,
    "intermediate_size": 17408,
    "num_hidden_layers": 64,
    "full_attention_interval": 4,
    "num_attention_heads": 24,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 48,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.25},
}
"""What decides the memory of Qwen3.5-27B, whose ``config.json`` has it as the text model's."""

QWEN3_5_27B: dict[str, Any] = {
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "model_type": "qwen3_5",
    "text_config": QWEN3_5_27B_TEXT,
}


def parse_hf_config(raw: Mapping[str, Any], *, name: str) -> ModelConfig:
    """Of a ``config.json`` that is parsed already."""
    config = HFConfig(raw, name=name)
    return registry.of_hf(config).read_hf_config(config)
