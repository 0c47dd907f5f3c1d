"""Llama, Mistral, Qwen2 and Qwen3: attention and a gated MLP in every layer.

They differ in biases (Qwen2), norms of q and k (Qwen3), windows (Mistral) and RoPE scaling: the config says which.
"""

from __future__ import annotations

from elastikv.memory.base import KVLayer
from elastikv.models.attention import Attention
from elastikv.models.build import build_decoder
from elastikv.models.decoder import Decoder
from elastikv.weights.config import ModelConfig
from elastikv.weights.loader import WeightLoader


def memory_layers(config: ModelConfig) -> list[KVLayer]:
    return [
        KVLayer(config.n_kv_heads, config.head_dim, config.head_dim, config.window if kind == "sliding" else None)
        for kind in config.layer_types
    ]


def build(config: ModelConfig, loader: WeightLoader) -> Decoder:
    def attention(layer: int) -> Attention:
        prefix = f"model.layers.{layer}.self_attn."
        projections = [prefix + name for name in ("q_proj", "k_proj", "v_proj")]
        return Attention(
            config,
            loader.kernels,
            layer,
            projection=loader.linear(projections, bias=config.qkv_bias),
            output=loader.linear([prefix + "o_proj"], bias=config.out_bias),
            norms=(loader.vector(prefix + "q_norm.weight"), loader.vector(prefix + "k_norm.weight"))
            if config.qk_norm
            else None,
        )

    return build_decoder(config, loader, memory_layers(config), attention)
