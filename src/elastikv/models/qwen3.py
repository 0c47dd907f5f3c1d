"""Qwen3 (Yang et al., arXiv:2505.09388): the plain decoder with norms of q and k."""

from __future__ import annotations

from elastikv.models.architecture import Architecture


class Qwen3(Architecture):
    """The plain decoder with norms of q and k."""

    name = "qwen3"
    classes = ("Qwen3ForCausalLM",)
    model_types = ("qwen3",)
    gguf_name = "qwen3"
    qk_norm = True
    has_attention_bias = True
    has_window = True
