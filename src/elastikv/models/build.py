"""Reads the parts that all the models share, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from elastikv.memory.base import LayerMemory
from elastikv.models.base import ModelInfo
from elastikv.models.decoder import Block, Decoder, Mixer
from elastikv.models.rope import Rope
from elastikv.weights.config import ModelConfig
from elastikv.weights.loader import WeightLoader


def build_decoder(
    config: ModelConfig,
    loader: WeightLoader,
    memory_layers: Sequence[LayerMemory],
    build_mixer: Callable[[int], Mixer],
) -> Decoder:
    """``build_mixer(layer)`` reads the mixer of a layer. Raises CorruptFile where a tensor is missing."""
    embedding = loader.embedding("model.embed_tokens")
    blocks = [_read_block(config, loader, layer, build_mixer) for layer in range(config.n_layers)]
    final_norm = loader.vector("model.norm.weight", config.norm_offset)
    head = loader.tied_linear(embedding) if config.tie_embeddings else loader.linear(["lm_head"])
    info = ModelInfo(
        architecture=config.architecture,
        name=config.name,
        n_layers=config.n_layers,
        n_vocab=config.n_vocab,
        n_ctx_train=config.n_ctx_train,
        eos_token_ids=config.eos_token_ids,
        weight_bytes=loader.weight_bytes,
        fingerprint=loader.fingerprint,
    )
    return Decoder(
        info,
        memory_layers,
        embedding=embedding,
        blocks=blocks,
        final_norm=final_norm,
        head=head,
        rope=Rope(config.rope),
        rms_norm_eps=config.rms_norm_eps,
        kernels=loader.kernels,
    )


def _read_block(config: ModelConfig, loader: WeightLoader, layer: int, build_mixer: Callable[[int], Mixer]) -> Block:
    prefix = f"model.layers.{layer}."
    return Block(
        input_norm=loader.vector(prefix + "input_layernorm.weight", config.norm_offset),
        mixer=build_mixer(layer),
        post_norm=loader.vector(prefix + "post_attention_layernorm.weight", config.norm_offset),
        gate_up=loader.linear([prefix + "mlp.gate_proj", prefix + "mlp.up_proj"], bias=config.mlp_bias),
        down=loader.linear([prefix + "mlp.down_proj"], bias=config.mlp_bias),
    )
