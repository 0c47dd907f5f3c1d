"""Hugging Face's ``config.json`` to a ``ModelConfig``.

Knows the layout before transformers 5 (``rope_theta``, ``rope_scaling``) and since (``rope_parameters``), and the
text model's part of a vision-language config (``text_config``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from elastikv.errors import CorruptFile, UnsupportedModel
from elastikv.weights.config import Architecture, DeltaNetConfig, LayerType, ModelConfig, RopeConfig, RopeKind

_ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3_5ForCausalLM": "qwen3_5",
    "Qwen3_5ForConditionalGeneration": "qwen3_5",
}
# For configs that name no class, such as a text_config that was cut out of a larger one.
_MODEL_TYPES: dict[str, Architecture] = {
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_5": "qwen3_5",
    "qwen3_5_text": "qwen3_5",
}
_LAYER_TYPES: dict[str, LayerType] = {
    "full_attention": "full",
    "sliding_attention": "sliding",
    "linear_attention": "recurrent",
}
_ROPE_KINDS = ("default", "linear", "llama3", "yarn")
_DEFAULT_HEAD_DIM = {"qwen3": 128, "qwen3_5": 256}


def read_hf_config(path: Path) -> ModelConfig:
    """Parse a ``config.json``; its folder's ``generation_config.json`` adds the tokens that end a text."""
    raw = _read_json(path)
    eos = None
    generation = path.parent / "generation_config.json"
    if generation.is_file():
        eos = _read_json(generation).get("eos_token_id")
    return parse_hf_config(raw, name=path.parent.resolve().name, eos_token_id=eos)


def parse_hf_config(raw: Mapping[str, Any], *, name: str, eos_token_id: int | list[int] | None = None) -> ModelConfig:
    """The config of the text model in ``raw``, the parsed JSON.

    Raises UnsupportedModel for anything that would compute something else, CorruptFile for a missing field.
    """
    architecture = _architecture(raw, name)
    text = {**raw, **raw["text_config"]} if "text_config" in raw else dict(raw)
    try:
        return _parse_text_config(text, architecture, raw, name, eos_token_id)
    except KeyError as error:
        raise CorruptFile(f"{name}: config.json lacks {error}") from None


def _parse_text_config(
    text: Mapping[str, Any],
    architecture: Architecture,
    raw: Mapping[str, Any],
    name: str,
    eos_token_id: int | list[int] | None,
) -> ModelConfig:
    _refuse_what_computes_otherwise(text, name)
    n_heads = text["num_attention_heads"]
    head_dim = text.get("head_dim") or _DEFAULT_HEAD_DIM.get(architecture) or text["hidden_size"] // n_heads
    window = text.get("sliding_window")
    bias = bool(text.get("attention_bias", False))
    eos = text.get("eos_token_id") if eos_token_id is None else eos_token_id
    return ModelConfig(
        architecture=architecture,
        name=name,
        n_vocab=text["vocab_size"],
        n_ctx_train=text["max_position_embeddings"],
        hidden_size=text["hidden_size"],
        intermediate_size=text["intermediate_size"],
        n_heads=n_heads,
        n_kv_heads=text.get("num_key_value_heads") or n_heads,
        head_dim=head_dim,
        layer_types=_layer_types(text, architecture, name),
        rope=_rope(text, architecture, head_dim, name),
        rms_norm_eps=text.get("rms_norm_eps", 1e-6),
        norm_offset=1.0 if architecture == "qwen3_5" else 0.0,
        window=window,
        qkv_bias=bias or architecture == "qwen2",
        out_bias=bias,
        mlp_bias=bool(text.get("mlp_bias", False)),
        qk_norm=architecture in ("qwen3", "qwen3_5"),
        tie_embeddings=bool(raw.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        delta_net=_delta_net(text) if architecture == "qwen3_5" else None,
        eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
    )


def _architecture(raw: Mapping[str, Any], name: str) -> Architecture:
    named = list(raw.get("architectures") or ())
    for candidate in named:
        if candidate in _ARCHITECTURES:
            return _ARCHITECTURES[candidate]
    model_type = raw.get("model_type")
    if not named and model_type in _MODEL_TYPES:
        return _MODEL_TYPES[model_type]
    what = ", ".join(named) or model_type
    if what is None:
        raise UnsupportedModel(f"{name}: config.json names no architecture")
    raise UnsupportedModel(f"{name}: {what} is not supported; supported are {', '.join(_ARCHITECTURES)}")


def _refuse_what_computes_otherwise(text: Mapping[str, Any], name: str) -> None:
    activation = text.get("hidden_act", "silu")
    if activation != "silu":
        raise UnsupportedModel(f"{name}: activation {activation!r} is not supported, only 'silu'")
    if text.get("quantization_config"):
        method = text["quantization_config"].get("quant_method", "unknown")
        raise UnsupportedModel(
            f"{name}: weights quantised by {method!r} are not supported; take the GGUF or 16-bit ones"
        )


def _layer_types(text: Mapping[str, Any], architecture: Architecture, name: str) -> tuple[LayerType, ...]:
    n_layers = text["num_hidden_layers"]
    named = text.get("layer_types")
    if named is not None:
        unknown = set(named) - set(_LAYER_TYPES)
        if unknown or len(named) != n_layers:
            raise UnsupportedModel(f"{name}: layer_types {sorted(set(named))} for {n_layers} layers are not supported")
        return tuple(_LAYER_TYPES[layer_type] for layer_type in named)
    if architecture == "qwen3_5":
        interval = text.get("full_attention_interval", 4)
        return tuple("full" if (layer + 1) % interval == 0 else "recurrent" for layer in range(n_layers))
    if architecture == "mistral" and text.get("sliding_window") is not None:
        return ("sliding",) * n_layers
    if architecture in ("qwen2", "qwen3") and text.get("use_sliding_window") and text.get("sliding_window") is not None:
        first_sliding = text.get("max_window_layers", 28)
        return tuple("sliding" if layer >= first_sliding else "full" for layer in range(n_layers))
    return ("full",) * n_layers


def _rope(text: Mapping[str, Any], architecture: Architecture, head_dim: int, name: str) -> RopeConfig:
    given: dict[str, Any] = {**(text.get("rope_scaling") or {}), **(text.get("rope_parameters") or {})}
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in _ROPE_KINDS:
        raise UnsupportedModel(
            f"{name}: RoPE scaling {kind!r} is not supported; supported are {', '.join(_ROPE_KINDS)}"
        )
    n_ctx = text["max_position_embeddings"]
    n_ctx_original = (
        text.get("original_max_position_embeddings") or given.get("original_max_position_embeddings") or n_ctx
    )
    fallback = 0.25 if architecture == "qwen3_5" else 1.0
    fraction = given.get("partial_rotary_factor", text.get("partial_rotary_factor", fallback))
    optional = {
        field: given[field]
        for field in (
            "low_freq_factor",
            "high_freq_factor",
            "beta_fast",
            "beta_slow",
            "attention_factor",
            "mscale",
            "mscale_all_dim",
            "truncate",
        )
        if given.get(field) is not None
    }
    return RopeConfig(
        dim=int(head_dim * fraction),
        theta=float(given.get("rope_theta") or text.get("rope_theta") or 10000.0),
        kind=cast(RopeKind, kind),
        factor=float(given.get("factor") or (n_ctx / n_ctx_original)),
        n_ctx_original=n_ctx_original,
        **optional,
    )


def _delta_net(text: Mapping[str, Any]) -> DeltaNetConfig:
    return DeltaNetConfig(
        n_k_heads=text.get("linear_num_key_heads", 16),
        n_v_heads=text.get("linear_num_value_heads", 32),
        k_dim=text.get("linear_key_head_dim", 128),
        v_dim=text.get("linear_value_head_dim", 128),
        conv_width=text.get("linear_conv_kernel_dim", 4),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CorruptFile(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(parsed, dict):
        raise CorruptFile(f"{path}: a JSON object was expected")
    return parsed
