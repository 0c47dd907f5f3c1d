"""Llama, Mistral, Qwen2 and Qwen3: attention and a gated MLP in every layer.

They differ in biases (Qwen2), norms of q and k (Qwen3), windows (Mistral) and RoPE scaling: the config says which.
"""

from __future__ import annotations

from elastikv.memory.base import KVLayer
from elastikv.models.attention import read_attention
from elastikv.models.build import build_decoder
from elastikv.models.decoder import Decoder, Mixer
from elastikv.weights.config import ModelConfig
from elastikv.weights.loader import WeightLoader


def memory_layers(config: ModelConfig) -> list[KVLayer]:
    return [
        KVLayer(config.n_kv_heads, config.head_dim, config.head_dim, config.window if kind == "sliding" else None)
        for kind in config.layer_types
    ]


def build(config: ModelConfig, loader: WeightLoader) -> Decoder:
    def mixer(layer: int) -> Mixer:
        return read_attention(config, loader, layer, ordinal=layer)

    return build_decoder(config, loader, memory_layers(config), mixer)
