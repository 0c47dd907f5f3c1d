"""Qwen2 and Qwen2.5 (Yang et al., arXiv:2407.10671): the plain decoder with biases of q, k and v."""

from __future__ import annotations

from elastikv.models.architecture import Architecture


class Qwen2(Architecture):
    """The plain decoder with biases of q, k and v."""

    name = "qwen2"
    classes = ("Qwen2ForCausalLM",)
    model_types = ("qwen2",)
    gguf_name = "qwen2"
    qkv_bias = True
    has_window = True
