"""Llama (Grattafiori et al., arXiv:2407.21783): attention with RoPE and a gated MLP in every layer."""

from __future__ import annotations

import torch
from typing_extensions import override

from elastikv.models.architecture import Architecture
from elastikv.models.config import LayerType, ModelConfig
from elastikv.weights.base import Fields
from elastikv.weights.gguf import Change, GGUFFields


class Llama(Architecture):
    """The plain decoder; its biases, if any, are of all projections."""

    name = "llama"
    classes = ("LlamaForCausalLM",)
    model_types = ("llama",)
    gguf_name = "llama"
    has_attention_bias = True
    has_mlp_bias = True

    @override
    def layer_types(self, fields: Fields) -> tuple[LayerType, ...]:
        """transformers attends to everything, whatever is written; a GGUF may be a Mistral's, with windows."""
        everything: tuple[LayerType, ...] = ("full",) * fields["num_hidden_layers"]
        named = super().layer_types(fields) if "layer_types" in fields else everything
        return named if isinstance(fields, GGUFFields) else everything

    @override
    def gguf_change(self, config: ModelConfig, name: str) -> Change:
        return neighbours_rotate(config, name)


def neighbours_rotate(config: ModelConfig, name: str) -> Change:
    """Rows of q and k are reordered within each head, because in ``llama`` ggml rotates neighbours, not halves."""
    for part, n_heads in ((".q_proj.", config.n_heads), (".k_proj.", config.n_kv_heads)):
        if part in name:
            return Change(row_order=_half_to_pair_order(n_heads, config.head_dim))
    return Change()


def _half_to_pair_order(n_heads: int, head_dim: int) -> torch.Tensor:
    """Rows of a head: first half, second half -> pairs of one from each."""
    rows = torch.arange(n_heads * head_dim).reshape(n_heads, 2, head_dim // 2)
    return rows.transpose(1, 2).reshape(-1)
