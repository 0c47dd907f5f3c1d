"""The model that ships with elastikv: a small hybrid (Qwen3.5 shape) that has read Python's standard library.

It makes every command work offline at once; ``README.md`` beside this file is its model card.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["path"]


def path() -> Path:
    """The Hugging Face folder of the demo model: config, weights, tokenizer and chat template."""
    return Path(__file__).resolve().parent
