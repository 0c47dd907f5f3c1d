"""A model's shape as GGUF metadata: the inverse of what reads it."""

from __future__ import annotations

import numpy as np
from gguf import GGUFWriter, RopeScalingType

from elastikv.errors import UnsupportedModel
from elastikv.models.architecture import Architecture
from elastikv.models.config import DeltaNetConfig, LayerType, ModelConfig, RopeConfig
from elastikv.weights.base import Fields
from elastikv.weights.gguf.config import yarn_magnitude


def write_config(writer: GGUFWriter, architecture: Architecture, config: ModelConfig, fields: Fields) -> None:
    """All but end tokens (with the vocabulary) and llama3 scaling (a tensor).

    llama.cpp knows no sliding windows in these architectures: it attends to everything.
    """
    writer.add_name(config.name)
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.n_ctx_train)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.n_vocab)
    if config.window is not None:
        writer.add_sliding_window(config.window)
        writer.add_sliding_window_pattern([kind == "sliding" for kind in config.layer_types])
    for field, key in architecture.gguf_keys.items():
        add = writer.add_bool if isinstance(fields[field], bool) else writer.add_uint32
        add(f"{architecture.gguf_name}.{key}", fields[field])
    _write_rope(writer, config.rope)
    if config.delta_net is not None:
        _write_delta_net(writer, config.delta_net, config)


def _write_rope(writer: GGUFWriter, rope: RopeConfig) -> None:
    writer.add_rope_dimension_count(rope.dim)
    writer.add_rope_freq_base(rope.theta)
    if rope.kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope.factor)
    if rope.kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope.factor)
        writer.add_rope_scaling_orig_ctx_len(rope.n_ctx_original)
        writer.add_rope_scaling_yarn_beta_fast(rope.beta_fast)
        writer.add_rope_scaling_yarn_beta_slow(rope.beta_slow)
        whole = rope.attention_factor
        if whole is None and rope.mscale and rope.mscale_all_dim:
            whole = yarn_magnitude(rope.factor, rope.mscale) / yarn_magnitude(rope.factor, rope.mscale_all_dim)
        if whole is not None:
            writer.add_rope_scaling_yarn_attn_factor(whole)
            writer.add_rope_scaling_attn_factors(whole / yarn_magnitude(rope.factor))


def _write_delta_net(writer: GGUFWriter, net: DeltaNetConfig, config: ModelConfig) -> None:
    writer.add_ssm_inner_size(net.value_width)
    # Frequencies that follow an image's time, height and width: all the same for text, but llama.cpp wants them.
    n_frequencies = config.rope.dim // 2
    writer.add_rope_dimension_sections([(n_frequencies + 2) // 3, (n_frequencies + 1) // 3, n_frequencies // 3, 0])
    writer.add_full_attention_interval(_attention_interval(config.layer_types))


def _attention_interval(layer_types: tuple[LayerType, ...]) -> int:
    """Every how many layers one attends; UnsupportedModel where that is not regular."""
    interval = layer_types.index("full") + 1 if "full" in layer_types else len(layer_types) + 1
    regular = tuple("recurrent" if (layer + 1) % interval else "full" for layer in range(len(layer_types)))
    if regular != layer_types:
        raise UnsupportedModel("a GGUF of this architecture needs full attention in every n-th layer")
    return interval


def rope_freq_factors(rope: RopeConfig) -> np.ndarray | None:
    """llama3 scaling as f32 ``[dim / 2]``: what each frequency is divided by. None for other kinds.

    Frequencies of wavelengths above ``n_ctx_original / low_freq_factor`` are divided by ``factor``, those below
    ``n_ctx_original / high_freq_factor`` stay, and the ones between are interpolated (Llama 3.1).
    """
    if rope.freq_factors is not None:
        return np.asarray(rope.freq_factors, dtype=np.float32)
    if rope.kind != "llama3":
        return None
    frequencies = rope.theta ** -(np.arange(0, rope.dim, 2, dtype=np.float64) / rope.dim)
    turns = rope.n_ctx_original * frequencies / (2 * np.pi)
    smooth = np.clip((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0, 1.0)
    return (1.0 / (smooth + (1.0 - smooth) / rope.factor)).astype(np.float32)
