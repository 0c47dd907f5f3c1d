"""How a Hugging Face checkpoint lies in a GGUF: names, and what llama.cpp's converter does to the values.

Facts from llama.cpp's conversion scripts (``conversion/llama.py``, ``conversion/qwen.py``):

- llama: rows of q and k are reordered within each head, because ggml rotates neighbours, not halves.
- qwen35: RMS norm weights are stored with 1 added (not the gated norm of the delta net), ``A_log`` as
  ``-exp(A_log)``, the convolution without its middle dimension; and where a k head serves several v heads,
  v heads are stored round robin (k0v0 k1v0 k0v1 k1v1) instead of grouped (k0v0 k0v1 k1v0 k1v1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from gguf import MODEL_ARCH, get_tensor_name_map

from elastikv.weights.config import DeltaNetConfig, ModelConfig

GGUF_ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_5": "qwen35",
}
"""``ModelConfig.architecture`` -> GGUF's ``general.architecture``."""

_ARCHITECTURE_KEYS = {
    "llama": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
    "qwen35": MODEL_ARCH.QWEN35,
}

_TOP = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
_COMMON = ("input_layernorm.weight", "post_attention_layernorm.weight")
_PROJECTIONS = tuple(f"self_attn.{part}_proj" for part in "qkvo") + tuple(
    f"mlp.{part}_proj" for part in ("gate", "up", "down")
)
_HEAD_NORMS = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")
_DELTA_NET = tuple(
    f"linear_attn.{part}"
    for part in (
        "in_proj_qkv.weight",
        "in_proj_z.weight",
        "in_proj_a.weight",
        "in_proj_b.weight",
        "conv1d.weight",
        "A_log",
        "dt_bias",
        "norm.weight",
        "out_proj.weight",
    )
)


@dataclass(frozen=True, slots=True)
class ValueMap:
    """An elementwise change of values, and its inverse. Both take and give f32."""

    store: Callable[[torch.Tensor], torch.Tensor]
    restore: Callable[[torch.Tensor], torch.Tensor]


_PLUS_ONE = ValueMap(lambda x: x + 1, lambda x: x - 1)
_NEGATIVE_EXP = ValueMap(lambda x: -torch.exp(x), lambda x: torch.log(-x))


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a Hugging Face tensor lies in a GGUF, and how it was changed on the way.

    row_order, column_order: int64; index i of the stored tensor is index ``order[i]`` of the original.
    squeezed: dimension 1, of size 1, was dropped.
    """

    gguf_name: str
    row_order: torch.Tensor | None = None
    column_order: torch.Tensor | None = None
    values: ValueMap | None = None
    squeezed: bool = False

    def store(self, tensor: torch.Tensor) -> torch.Tensor:
        """From the original to what the GGUF holds; floats stay in their dtype unless values change."""
        if self.squeezed:
            tensor = tensor.squeeze(1)
        if self.row_order is not None:
            tensor = tensor[self.row_order]
        if self.column_order is not None:
            tensor = tensor[:, self.column_order]
        return tensor if self.values is None else self.values.store(tensor.float())

    def restore(self, stored: torch.Tensor) -> torch.Tensor:
        """The inverse of ``store``."""
        if self.values is not None:
            stored = self.values.restore(stored.float())
        if self.row_order is not None:
            stored = stored[torch.argsort(self.row_order)]
        if self.column_order is not None:
            stored = stored[:, torch.argsort(self.column_order)]
        return stored.unsqueeze(1) if self.squeezed else stored


def places(config: ModelConfig) -> dict[str, Place]:
    """Every tensor that a model of this config may have, by its Hugging Face name."""
    key = _ARCHITECTURE_KEYS[GGUF_ARCHITECTURES[config.architecture]]
    names = get_tensor_name_map(key, config.n_layers)
    found: dict[str, Place] = {}
    for name in _names(config):
        # The map knows the bias of the time step by the name that Mamba gave it.
        gguf_name = names.get_name(name.replace(".dt_bias", ".dt_proj.bias"), try_suffixes=(".weight", ".bias"))
        if gguf_name is not None:
            found[name] = Place(gguf_name, **_change(name, config))
    return found


def _names(config: ModelConfig) -> Iterator[str]:
    parts = [*_COMMON, *(f"{part}.{kind}" for part in _PROJECTIONS for kind in ("weight", "bias")), *_HEAD_NORMS]
    if config.delta_net is not None:
        parts += _DELTA_NET
    yield from _TOP
    for layer in range(config.n_layers):
        yield from (f"model.layers.{layer}.{part}" for part in parts)


def _change(name: str, config: ModelConfig) -> dict[str, Any]:
    if GGUF_ARCHITECTURES[config.architecture] == "llama":
        return _llama_change(name, config)
    return _qwen35_change(name, config.delta_net) if config.delta_net is not None else {}


def _llama_change(name: str, config: ModelConfig) -> dict[str, Any]:
    if ".q_proj." in name:
        return {"row_order": _half_to_pair_order(config.n_heads, config.head_dim)}
    if ".k_proj." in name:
        return {"row_order": _half_to_pair_order(config.n_kv_heads, config.head_dim)}
    return {}


def _qwen35_change(name: str, net: DeltaNetConfig) -> dict[str, Any]:
    if name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
        return {"values": _PLUS_ONE}
    v_order = _round_robin_order(net.n_k_heads, net.n_v_heads, net.v_dim)
    head_order = _round_robin_order(net.n_k_heads, net.n_v_heads, 1)
    qk_rows = torch.arange(2 * net.key_width)
    qkv_order = None if v_order is None else torch.cat([qk_rows, len(qk_rows) + v_order])
    changes: dict[str, dict[str, Any]] = {
        "in_proj_qkv.weight": {"row_order": qkv_order},
        "conv1d.weight": {"row_order": qkv_order, "squeezed": True},
        "in_proj_z.weight": {"row_order": v_order},
        "in_proj_a.weight": {"row_order": head_order},
        "in_proj_b.weight": {"row_order": head_order},
        "dt_bias": {"row_order": head_order},
        "A_log": {"row_order": head_order, "values": _NEGATIVE_EXP},
        "out_proj.weight": {"column_order": v_order},
    }
    return changes.get(name.rpartition("linear_attn.")[2], {})


def _half_to_pair_order(n_heads: int, head_dim: int) -> torch.Tensor:
    """Rows of a head: first half, second half -> pairs of one from each."""
    rows = torch.arange(n_heads * head_dim).reshape(n_heads, 2, head_dim // 2)
    return rows.transpose(1, 2).reshape(-1)


def _round_robin_order(n_k_heads: int, n_v_heads: int, rows_per_head: int) -> torch.Tensor | None:
    """v heads grouped by their k head -> dealt out, one per k head at a time. None if that changes nothing."""
    if n_v_heads == n_k_heads:
        return None
    rows = torch.arange(n_v_heads * rows_per_head).reshape(n_k_heads, n_v_heads // n_k_heads, rows_per_head)
    return rows.transpose(0, 1).reshape(-1)
