"""Hugging Face's ``config.json`` to a ``ModelConfig``.

Knows transformers 5's layout (older ones are read by transformers itself) and the text model's part of a
vision-language config (``text_config``). What a config leaves out is what transformers' own
config class makes of the rest; what transformers ignores in an architecture is ignored here, too.
"""

from __future__ import annotations

import copy
import functools
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
_HAVE_ATTENTION_BIAS = ("llama", "qwen3", "qwen3_5")
_HAVE_PARTIAL_ROTATION = ("qwen3_5",)


def read_hf_config(path: Path) -> ModelConfig:
    """Parse a ``config.json``; its folder's ``generation_config.json`` adds the tokens that end a text."""
    raw = _read_json(path)
    eos = None
    generation = path.parent / "generation_config.json"
    if generation.is_file():
        eos = _read_json(generation).get("eos_token_id")
    return parse_hf_config(raw, name=path.parent.resolve().name, eos_token_id=eos)


class _Fields:
    """Fields of a text model's config: as they are written, else as transformers' config class has them.

    The class is asked only where a field is missing or null, for to import it takes longer than to load a small model.
    """

    def __init__(self, written: Mapping[str, Any], architecture: Architecture, name: str) -> None:
        self.written = written
        self._architecture = architecture
        self._name = name

    def __contains__(self, key: str) -> bool:
        return self.written.get(key) is not None

    def __getitem__(self, key: str) -> Any:
        """None where neither has it."""
        return self.written[key] if key in self else getattr(self.reference, key, None)

    @functools.cached_property
    def reference(self) -> Any:
        """transformers' config of the same fields."""
        from transformers import AutoConfig

        model_type: str = "qwen3_5_text" if self._architecture == "qwen3_5" else self._architecture
        if model_type == "mistral" and "layer_types" in self:
            model_type = "ministral"  # as AutoConfig does
        fields = {key: value for key, value in self.written.items() if key != "model_type"}
        try:
            return AutoConfig.for_model(model_type, **copy.deepcopy(fields))
        except Exception as error:
            raise refused_by_transformers(self._name, error) from None


def refused_by_transformers(name: str, error: Exception) -> CorruptFile:
    """What a config class raised, as one line: its validation has an error tree of its own, and KeyError."""
    return CorruptFile(f"{name}: config.json: {' '.join(str(error).split())}")


def parse_hf_config(raw: Mapping[str, Any], *, name: str, eos_token_id: int | list[int] | None = None) -> ModelConfig:
    """The config of the text model in ``raw``, the parsed JSON.

    Raises UnsupportedModel for anything that would compute something else, CorruptFile for what transformers refuses.
    """
    architecture = _architecture(raw, name)
    text = {**raw, **raw["text_config"]} if "text_config" in raw else dict(raw)
    _refuse_what_computes_otherwise(text, name)
    fields = _Fields(text, architecture, name)
    n_heads = fields["num_attention_heads"]
    head_dim = fields["head_dim"] or fields["hidden_size"] // n_heads
    layer_types = _layer_types(fields, architecture, name)
    bias = architecture in _HAVE_ATTENTION_BIAS and bool(fields["attention_bias"])
    tied = raw["tie_word_embeddings"] if "tie_word_embeddings" in raw else fields["tie_word_embeddings"]
    eos = fields["eos_token_id"] if eos_token_id is None else eos_token_id
    return ModelConfig(
        architecture=architecture,
        name=name,
        n_vocab=fields["vocab_size"],
        n_ctx_train=fields["max_position_embeddings"],
        hidden_size=fields["hidden_size"],
        intermediate_size=fields["intermediate_size"],
        n_heads=n_heads,
        n_kv_heads=fields["num_key_value_heads"],
        head_dim=head_dim,
        layer_types=layer_types,
        rope=_rope(fields, architecture, head_dim, name),
        rms_norm_eps=fields["rms_norm_eps"],
        norm_offset=1.0 if architecture == "qwen3_5" else 0.0,
        window=fields["sliding_window"] if "sliding" in layer_types else None,
        qkv_bias=bias or architecture == "qwen2",
        out_bias=bias,
        mlp_bias=architecture == "llama" and bool(fields["mlp_bias"]),
        qk_norm=architecture in ("qwen3", "qwen3_5"),
        tie_embeddings=bool(tied),
        delta_net=_delta_net(fields) if architecture == "qwen3_5" else None,
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


def _layer_types(fields: _Fields, architecture: Architecture, name: str) -> tuple[LayerType, ...]:
    n_layers = fields["num_hidden_layers"]
    if architecture == "mistral" and "layer_types" not in fields:
        return ("full" if fields["sliding_window"] is None else "sliding",) * n_layers
    if architecture == "llama" and "layer_types" not in fields:
        return ("full",) * n_layers
    named = fields["layer_types"]
    unknown = set(named) - set(_LAYER_TYPES)
    if unknown or len(named) != n_layers:
        raise UnsupportedModel(f"{name}: layer_types {sorted(set(named))} for {n_layers} layers are not supported")
    if architecture == "llama":  # has no other layers, whatever is written
        return ("full",) * n_layers
    return tuple(_LAYER_TYPES[layer_type] for layer_type in named)


def _rope(fields: _Fields, architecture: Architecture, head_dim: int, name: str) -> RopeConfig:
    given = _rope_parameters(fields, architecture, name)
    kind = given["rope_type"]
    n_ctx = fields["max_position_embeddings"]
    n_ctx_original = given.get("original_max_position_embeddings") or n_ctx
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
        dim=_rotated_dim(given, kind, architecture, head_dim, name),
        theta=float(given["rope_theta"]),
        kind=cast(RopeKind, kind),
        factor=float(given.get("factor") or (n_ctx / n_ctx_original)),
        n_ctx_original=n_ctx_original,
        **optional,
    )


def _rope_parameters(fields: _Fields, architecture: Architecture, name: str) -> Mapping[str, Any]:
    """``rope_parameters`` in transformers 5's layout."""
    given = fields.written.get("rope_scaling") or fields.written.get("rope_parameters") or {}
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in _ROPE_KINDS:
        raise UnsupportedModel(
            f"{name}: RoPE scaling {kind!r} is not supported; supported are {', '.join(_ROPE_KINDS)}"
        )
    needed = {"rope_type", "rope_theta"} | (
        {"partial_rotary_factor"} if architecture in _HAVE_PARTIAL_ROTATION else set()
    )
    outside = {"partial_rotary_factor", "original_max_position_embeddings"} & fields.written.keys()
    if outside or not needed <= given.keys():
        given = fields.reference.rope_parameters
    if "rope_theta" not in given:
        raise UnsupportedModel(f"{name}: RoPE that differs between layers is not supported")
    return given


def _rotated_dim(given: Mapping[str, Any], kind: str, architecture: Architecture, head_dim: int, name: str) -> int:
    """Dimensions of a head that are rotated: a part only where transformers rotates a part."""
    if kind == "default" and architecture not in _HAVE_PARTIAL_ROTATION:
        return head_dim
    dim = int(head_dim * given.get("partial_rotary_factor", 1.0))
    if dim != head_dim and architecture not in _HAVE_PARTIAL_ROTATION:
        raise CorruptFile(
            f"{name}: partial_rotary_factor with RoPE scaling {kind!r} is nothing that {architecture} has"
        )
    return dim


def _delta_net(fields: _Fields) -> DeltaNetConfig:
    return DeltaNetConfig(
        n_k_heads=fields["linear_num_key_heads"],
        n_v_heads=fields["linear_num_value_heads"],
        k_dim=fields["linear_key_head_dim"],
        v_dim=fields["linear_value_head_dim"],
        conv_width=fields["linear_conv_kernel_dim"],
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CorruptFile(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(parsed, dict):
        raise CorruptFile(f"{path}: a JSON object was expected")
    return parsed
