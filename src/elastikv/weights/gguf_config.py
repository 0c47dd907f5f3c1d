"""A model's shape as GGUF metadata, in both directions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, RopeScalingType

from elastikv.errors import CorruptFile, UnsupportedModel
from elastikv.weights.config import Architecture, DeltaNetConfig, LayerType, ModelConfig, RopeConfig, RopeKind
from elastikv.weights.gguf_header import GGUFHeader

_ARCHITECTURES: dict[str, Architecture] = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen35": "qwen3_5"}
_ROPE_KINDS: dict[str, RopeKind] = {"": "default", "none": "default", "linear": "linear", "yarn": "yarn"}
_DEFAULT_ATTENTION_INTERVAL = 4
ROPE_FREQS = "rope_freqs.weight"
"""Holds what llama3 scaling divides each frequency by; metadata does not tell of it."""

_END_OF_TURN_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_END_OF_TURN_TOKENS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
)
"""Tokens that end a generation whether or not the metadata says so; llama.cpp goes by these names too."""


def read_config(path: Path, header: GGUFHeader, rope_freqs: tuple[float, ...] | None) -> ModelConfig:
    """Raises UnsupportedModel for architectures that nothing here runs, CorruptFile if a needed key is missing."""
    if header.architecture not in _ARCHITECTURES:
        raise UnsupportedModel(
            f"{path}: architecture {header.architecture!r} is not supported; supported: {', '.join(_ARCHITECTURES)}"
        )
    try:
        return _read_config(path, header, rope_freqs)
    except KeyError as error:
        raise CorruptFile(f"{path}: metadata lacks {error.args[0]}") from error


def _read_config(path: Path, header: GGUFHeader, rope_freqs: tuple[float, ...] | None) -> ModelConfig:
    n_heads = _required(header, "attention.head_count")
    hidden_size = _required(header, "embedding_length")
    head_dim = int(header.of_architecture("attention.key_length", hidden_size // n_heads))
    layer_types, window = _read_layers(header)
    return ModelConfig(
        architecture=_ARCHITECTURES[header.architecture],
        name=str(header.metadata.get("general.name", path.stem)),
        n_vocab=header.tensors["token_embd.weight"].shape[0],
        n_ctx_train=_required(header, "context_length"),
        hidden_size=hidden_size,
        intermediate_size=_required(header, "feed_forward_length"),
        n_heads=n_heads,
        n_kv_heads=int(header.of_architecture("attention.head_count_kv", n_heads)),
        head_dim=head_dim,
        layer_types=layer_types,
        rope=_read_rope(header, head_dim, rope_freqs),
        rms_norm_eps=float(header.of_architecture("attention.layer_norm_rms_epsilon", 1e-6)),
        norm_offset=1.0 if header.architecture == "qwen35" else 0.0,
        window=window,
        qkv_bias=_has_tensor(header, "attn_q.bias"),
        out_bias=_has_tensor(header, "attn_output.bias"),
        mlp_bias=_has_tensor(header, "ffn_down.bias"),
        qk_norm=_has_tensor(header, "attn_q_norm.weight"),
        tie_embeddings="output.weight" not in header.tensors,
        delta_net=_read_delta_net(header),
        eos_token_ids=_read_end_tokens(header),
    )


def _required(header: GGUFHeader, key: str) -> int:
    return int(header.metadata[f"{header.architecture}.{key}"])


def _has_tensor(header: GGUFHeader, suffix: str) -> bool:
    return any(name.endswith(f".{suffix}") for name in header.tensors)


def _read_layers(header: GGUFHeader) -> tuple[tuple[LayerType, ...], int | None]:
    """Types of the layers and the window of the sliding ones. Blocks that predict further tokens are not counted."""
    n_layers = _required(header, "block_count") - int(header.of_architecture("nextn_predict_layers", 0))
    if header.architecture == "qwen35":
        interval = int(header.of_architecture("full_attention_interval", _DEFAULT_ATTENTION_INTERVAL))
        recurrent = header.of_architecture("attention.recurrent_layers")
        if recurrent is None:
            recurrent = [(layer + 1) % interval != 0 for layer in range(n_layers)]
        return _layer_types(recurrent[:n_layers], "recurrent"), None
    window = int(header.of_architecture("attention.sliding_window", 0))
    if not window:
        return _layer_types([False] * n_layers, "sliding"), None
    pattern = header.of_architecture("attention.sliding_window_pattern", np.ones(n_layers, dtype=bool))
    return _layer_types(pattern[:n_layers], "sliding"), window


def _layer_types(marks: Iterable[bool], marked: LayerType) -> tuple[LayerType, ...]:
    return tuple(marked if mark else "full" for mark in marks)


def _read_delta_net(header: GGUFHeader) -> DeltaNetConfig | None:
    if header.architecture != "qwen35":
        return None
    n_v_heads = _required(header, "ssm.time_step_rank")
    return DeltaNetConfig(
        n_k_heads=_required(header, "ssm.group_count"),
        n_v_heads=n_v_heads,
        k_dim=_required(header, "ssm.state_size"),
        v_dim=_required(header, "ssm.inner_size") // n_v_heads,
        conv_width=_required(header, "ssm.conv_kernel"),
    )


def _read_rope(header: GGUFHeader, head_dim: int, freq_factors: tuple[float, ...] | None) -> RopeConfig:
    scaling = str(header.of_architecture("rope.scaling.type", ""))
    if scaling not in _ROPE_KINDS:
        raise UnsupportedModel(f"rope scaling {scaling!r} is not supported; supported: none, linear, yarn, llama3")
    kind = _ROPE_KINDS[scaling]
    factor = float(header.of_architecture("rope.scaling.factor", 1.0)) or 1.0
    return RopeConfig(
        dim=int(header.of_architecture("rope.dimension_count", head_dim)),
        theta=float(header.of_architecture("rope.freq_base", 10000.0)),
        kind=kind,
        factor=factor,
        n_ctx_original=int(
            header.of_architecture("rope.scaling.original_context_length", 0) or _required(header, "context_length")
        ),
        beta_fast=float(header.of_architecture("rope.scaling.yarn_beta_fast", 32.0)),
        beta_slow=float(header.of_architecture("rope.scaling.yarn_beta_slow", 1.0)),
        attention_factor=_read_attention_factor(header, factor) if kind == "yarn" else None,
        freq_factors=freq_factors,
    )


def _read_attention_factor(header: GGUFHeader, factor: float) -> float | None:
    """What the converter wrote, all that cos and sin are scaled by; or what llama.cpp goes by, on top of YaRN's own."""
    whole = header.of_architecture("rope.scaling.yarn_attn_factor")
    if whole is not None:
        return float(whole)
    on_top = header.of_architecture("rope.scaling.attn_factor")
    return None if on_top is None else float(on_top) * _yarn_magnitude(factor)


def _yarn_magnitude(factor: float, scale: float = 1.0) -> float:
    """What YaRN scales cos and sin by (Peng et al., arXiv:2309.00071)."""
    return 1.0 if factor <= 1 else 1.0 + 0.1 * scale * math.log(factor)


def _read_end_tokens(header: GGUFHeader) -> tuple[int, ...]:
    ids = [header.metadata.get(f"tokenizer.ggml.{key}") for key in _END_OF_TURN_KEYS]
    tokens: list[bytes] = header.metadata.get("tokenizer.ggml.tokens", [])
    names = {name.encode() for name in _END_OF_TURN_TOKENS}
    ids += [token_id for token_id, token in enumerate(tokens) if token in names]
    return tuple(dict.fromkeys(int(token_id) for token_id in ids if token_id is not None))


def write_config(writer: GGUFWriter, config: ModelConfig) -> None:
    """The inverse of ``read_config``, but for end tokens (with the vocabulary) and llama3 scaling (a tensor).

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
            whole = _yarn_magnitude(rope.factor, rope.mscale) / _yarn_magnitude(rope.factor, rope.mscale_all_dim)
        if whole is not None:
            writer.add_rope_scaling_yarn_attn_factor(whole)
            writer.add_rope_scaling_attn_factors(whole / _yarn_magnitude(rope.factor))


def _write_delta_net(writer: GGUFWriter, net: DeltaNetConfig, config: ModelConfig) -> None:
    writer.add_ssm_conv_kernel(net.conv_width)
    writer.add_ssm_state_size(net.k_dim)
    writer.add_ssm_group_count(net.n_k_heads)
    writer.add_ssm_time_step_rank(net.n_v_heads)
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
