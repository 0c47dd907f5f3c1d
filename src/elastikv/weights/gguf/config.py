"""A GGUF's metadata as the fields of ``config.json``, so that one reader makes a config of either."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from typing_extensions import override

from elastikv.errors import CorruptFile, UnsupportedModel
from elastikv.weights.base import Fields
from elastikv.weights.gguf.header import GGUFHeader
from elastikv.weights.gguf.tokenizer import end_tokens

_KEYS = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
"""Fields of every architecture -> ``<architecture>.<key>``."""

_ROPE_KINDS = {"": "default", "none": "default"}
"""``rope.scaling.type`` -> ``rope_type``, where they differ."""


class GGUFFields(Fields):
    """Fields read from a GGUF's metadata and tensors.

    keys: more fields and the keys that say them; own: fields that no single key says. rope_freqs: what each RoPE
    frequency is divided by (llama3 scaling, of which metadata does not tell).
    """

    def __init__(
        self,
        header: GGUFHeader,
        keys: Mapping[str, str],
        own: Mapping[str, Any],
        rope_freqs: tuple[float, ...] | None,
    ) -> None:
        self.name = header.name
        self._header = header
        self._rope_freqs = rope_freqs
        self._keys = {**_KEYS, **keys}
        said = {field: header.of_architecture(key) for field, key in self._keys.items()}
        said = {field: value for field, value in said.items() if value is not None}
        self._values = {**_defaults(header), **said, **_computed(header), **own}

    @override
    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    @override
    def __getitem__(self, key: str) -> Any:
        if key in self._keys and key not in self._values:
            return self._header.required(self._keys[key])
        return self._values.get(key)

    @override
    def get(self, key: str, default: Any) -> Any:
        return self._values[key] if key in self else default

    @override
    def rope_parameters(
        self, kinds: Collection[str], needed: Collection[str] = (), layer_type: str | None = None
    ) -> Mapping[str, Any]:
        header = self._header
        scaling = str(header.of_architecture("rope.scaling.type", ""))
        kind = _ROPE_KINDS.get(scaling, scaling)
        if kind not in kinds:
            raise UnsupportedModel(f"rope scaling {scaling!r} is not supported; supported: none, linear, yarn, llama3")
        factor = float(header.of_architecture("rope.scaling.factor", 1.0)) or 1.0
        return {
            "rope_type": kind,
            "rope_theta": float(header.of_architecture("rope.freq_base", 10000.0)),
            "rotary_dim": int(header.of_architecture("rope.dimension_count", self["head_dim"])),
            "factor": factor,
            "original_max_position_embeddings": int(
                header.of_architecture("rope.scaling.original_context_length", 0) or self["max_position_embeddings"]
            ),
            "beta_fast": float(header.of_architecture("rope.scaling.yarn_beta_fast", 32.0)),
            "beta_slow": float(header.of_architecture("rope.scaling.yarn_beta_slow", 1.0)),
            "attention_factor": _attention_factor(header, factor) if kind == "yarn" else None,
            "freq_factors": self._rope_freqs,
        }


def _defaults(header: GGUFHeader) -> dict[str, Any]:
    """What the keys of ``_KEYS`` that may be missing mean then."""
    n_heads, width = header.of_architecture("attention.head_count"), header.of_architecture("embedding_length")
    heads = {"num_key_value_heads": n_heads, "head_dim": width // n_heads} if n_heads and width else {}
    return {"rms_norm_eps": 1e-6, **heads}


def _computed(header: GGUFHeader) -> dict[str, Any]:
    """Fields that follow from tensors, or from several keys together."""
    if "token_embd.weight" not in header.tensors:
        raise CorruptFile(f"{header.path}: the file lacks token_embd.weight")
    return {
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": header.has_tensor("attn_q.bias"),
        "attention_out_bias": header.has_tensor("attn_output.bias"),
        "mlp_bias": header.has_tensor("ffn_down.bias"),
        "eos_token_id": end_tokens(header),
        **_layers(header),
    }


def n_layers(header: GGUFHeader) -> int:
    """Blocks of the model, without those that predict further tokens (multi-token prediction)."""
    return int(header.required("block_count")) - int(header.of_architecture("nextn_predict_layers", 0))


def _layers(header: GGUFHeader) -> dict[str, Any]:
    """How many, of which types, and the window of the sliding ones."""
    n, window = n_layers(header), int(header.of_architecture("attention.sliding_window", 0))
    pattern = header.of_architecture("attention.sliding_window_pattern", [True] * n) if window else [False] * n
    return {
        "num_hidden_layers": n,
        "layer_types": layer_types(pattern[:n], "sliding_attention"),
        "sliding_window": window or None,
    }


def layer_types(marks: Iterable[bool], marked: str) -> list[str]:
    """``layer_types`` of layers, of which some are marked and the others attend to everything."""
    return [marked if mark else "full_attention" for mark in marks]


def _attention_factor(header: GGUFHeader, factor: float) -> float | None:
    """What the converter wrote, all that cos and sin are scaled by; or what llama.cpp goes by, on top of YaRN's own."""
    whole = header.of_architecture("rope.scaling.yarn_attn_factor")
    if whole is not None:
        return float(whole)
    on_top = header.of_architecture("rope.scaling.attn_factor")
    return None if on_top is None else float(on_top) * yarn_magnitude(factor)


def yarn_magnitude(factor: float, scale: float = 1.0) -> float:
    """What YaRN scales cos and sin by (Peng et al., arXiv:2309.00071)."""
    return 1.0 if factor <= 1 else 1.0 + 0.1 * scale * math.log(factor)
