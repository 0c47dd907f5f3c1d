"""From an architecture and a checkpoint to a model's weights, read tensor by tensor."""

from __future__ import annotations

from elastikv.kernels.weights import LinearWeights, Norms
from elastikv.models.architecture import Architecture
from elastikv.models.base import ModelInfo
from elastikv.models.config import ModelConfig
from elastikv.models.decoder import BlockWeights, DecoderWeights
from elastikv.models.reader import ModelReader
from elastikv.weights import own_memory
from elastikv.weights.loader import WeightLoader


def read_weights(architecture: Architecture, config: ModelConfig, loader: WeightLoader) -> DecoderWeights:
    """Raises CorruptFile where a tensor is missing or of another shape than the config says."""
    read = ModelReader(config, loader)
    table = (config.n_vocab, config.hidden_size)
    embedding = loader.matrix("model.embed_tokens", table)
    blocks = []
    for layer, memory in enumerate(architecture.memory_layers(config)):
        own_memory.trim_heap()  # of what the layer before needed
        mixer = architecture.mixer(read, layer)
        blocks.append(BlockWeights(memory, mixer, architecture.feed_forward(read, layer)))
    norm = Norms(read.norm("model.norm"), config.rms_norm_eps)
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
    return DecoderWeights(info, embedding, architecture.embedding_scale(config), tuple(blocks), norm, head)
