"""Reads the parts that all the models share, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from elastikv.kernels.base import Kernels, Sublayer
from elastikv.kernels.rope import Rope
from elastikv.kernels.weights import LinearWeights, MlpWeights, Norms
from elastikv.memory.base import LayerMemory
from elastikv.models.base import ModelInfo
from elastikv.models.decoder import Block, Decoder
from elastikv.models.rope import make_rope
from elastikv.weights import own_memory
from elastikv.weights.config import ModelConfig
from elastikv.weights.loader import WeightLoader


def build_decoder(
    config: ModelConfig,
    loader: WeightLoader,
    kernels: Kernels,
    memory_layers: Sequence[LayerMemory],
    build_mixer: Callable[[int, Norms, Rope], Sublayer],
) -> Decoder:
    """``build_mixer(layer)`` reads the mixer of a layer. Raises CorruptFile where a tensor is missing."""
    table, rope = (config.n_vocab, config.hidden_size), make_rope(config.rope)
    embedding = loader.matrix("model.embed_tokens", table)
    blocks = [_read_block(config, loader, kernels, layer, rope, build_mixer) for layer in range(config.n_layers)]
    final_norm = loader.vector("model.norm.weight", (config.hidden_size,), offset=config.norm_offset)
    head = LinearWeights.of([(embedding, None)]) if config.tie_embeddings else loader.linear(["lm_head"], table)
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
        embedding=kernels.embedding_layer(embedding),
        blocks=blocks,
        norm=Norms(final_norm, config.rms_norm_eps),
        head=kernels.linear_layer(head),
        kernels=kernels,
    )


def _read_block(
    config: ModelConfig,
    loader: WeightLoader,
    kernels: Kernels,
    layer: int,
    rope: Rope,
    build_mixer: Callable[[int, Norms, Rope], Sublayer],
) -> Block:
    own_memory.trim_heap()  # of what the layer before needed
    prefix = f"model.layers.{layer}."
    hidden, inner = config.hidden_size, config.intermediate_size

    def norms(name: str) -> Norms:
        weight = loader.vector(f"{prefix}{name}.weight", (hidden,), offset=config.norm_offset)
        return Norms(weight, config.rms_norm_eps)

    mixer = build_mixer(layer, norms("input_layernorm"), rope)
    gate_and_up = [prefix + "mlp.gate_proj", prefix + "mlp.up_proj"]
    mlp = MlpWeights(
        norms("post_attention_layernorm"),
        gate_up=loader.linear(gate_and_up, (2 * inner, hidden), bias=config.mlp_bias),
        down=loader.linear([prefix + "mlp.down_proj"], (hidden, inner), bias=config.mlp_bias),
    )
    return Block(mixer, kernels.mlp_layer(mlp))
