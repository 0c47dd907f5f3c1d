"""A Hugging Face folder as a GGUF file: for tests, and for measuring beside llama.cpp on the same weights."""

from tools.gguf_export.export import export_gguf, main

__all__ = ["export_gguf", "main"]
