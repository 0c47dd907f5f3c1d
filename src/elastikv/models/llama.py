"""Llama, Mistral, Qwen2 and Qwen3: attention and a gated MLP in every layer.

They differ in biases (Qwen2), norms of q and k (Qwen3), windows (Mistral) and RoPE scaling: the config says which.
"""

from __future__ import annotations

from elastikv.kernels.base import Kernels, Sublayer
from elastikv.kernels.rope import Rope
from elastikv.kernels.weights import Norms
from elastikv.memory.base import KVLayer
from elastikv.models.attention import read_attention
from elastikv.models.build import build_decoder
from elastikv.models.decoder import Decoder
from elastikv.weights.config import ModelConfig
from elastikv.weights.loader import WeightLoader


def memory_layers(config: ModelConfig) -> list[KVLayer]:
    return [
        KVLayer(config.n_kv_heads, config.head_dim, config.head_dim, config.window if kind == "sliding" else None)
        for kind in config.layer_types
    ]


def build(config: ModelConfig, loader: WeightLoader, kernels: Kernels) -> Decoder:
    def mixer(layer: int, norms: Norms, rope: Rope) -> Sublayer:
        return kernels.attention_layer(read_attention(config, loader, layer, norms, rope), layer)

    return build_decoder(config, loader, kernels, memory_layers(config), mixer)
