"""Reads the parts that all the models share, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from elastikv.memory.base import LayerMemory
from elastikv.models.base import ModelInfo
from elastikv.models.decoder import Block, Decoder, Mixer
from elastikv.models.rope import Rope
from elastikv.weights import own_memory
from elastikv.weights.config import ModelConfig
from elastikv.weights.loader import WeightLoader


def build_decoder(
    config: ModelConfig,
    loader: WeightLoader,
    memory_layers: Sequence[LayerMemory],
    build_mixer: Callable[[int], Mixer],
) -> Decoder:
    """``build_mixer(layer)`` reads the mixer of a layer. Raises CorruptFile where a tensor is missing."""
    table = (config.n_vocab, config.hidden_size)
    embedding = loader.embedding("model.embed_tokens", table)
    blocks = [_read_block(config, loader, layer, build_mixer) for layer in range(config.n_layers)]
    final_norm = loader.vector("model.norm.weight", (config.hidden_size,), offset=config.norm_offset)
    head = loader.tied_linear(embedding) if config.tie_embeddings else loader.linear(["lm_head"], table)
    own_memory.trim_heap()
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
    own_memory.trim_heap()  # of what the layer before needed
    prefix = f"model.layers.{layer}."
    hidden, inner = config.hidden_size, config.intermediate_size

    def norm(name: str) -> torch.Tensor:
        return loader.vector(f"{prefix}{name}.weight", (hidden,), offset=config.norm_offset)

    gate_and_up = [prefix + "mlp.gate_proj", prefix + "mlp.up_proj"]
    return Block(
        input_norm=norm("input_layernorm"),
        mixer=build_mixer(layer),
        post_norm=norm("post_attention_layernorm"),
        gate_up=loader.linear(gate_and_up, (2 * inner, hidden), bias=config.mlp_bias),
        down=loader.linear([prefix + "mlp.down_proj"], (hidden, inner), bias=config.mlp_bias),
    )
