"""Texts in the middle: the tokens that models trained to fill in have for it, and prompts made of them."""

from __future__ import annotations

from collections.abc import Sequence

from elastikv.server.errors import not_supported
from elastikv.server.llama_schemas import ExtraFile
from elastikv.weights.tokenizer import Tokenizer

_MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
)
_FILE = ("<|file_sep|>", "<file_sep>")
_REPOSITORY = ("<|repo_name|>", "<repo_name>")


def fill_in_prompt(
    tokenizer: Tokenizer, prefix: str, suffix: str, *, extra: Sequence[ExtraFile] = (), begun: str = "", param: str
) -> list[int]:
    """Token ids after which the model writes what stands between prefix and suffix, beginning with ``begun``.

    As llama-server lays it out: other files, prefix, suffix, middle. Raises APIError (400, for ``param``) for a model
    without such tokens.
    """
    ids = next((ids for marks in _MARKS if None not in (ids := [tokenizer.token_id(mark) for mark in marks])), None)
    if ids is None:
        raise not_supported(param, f"{param}: this model has no tokens to fill in a text")
    before, after, middle = (token_id for token_id in ids if token_id is not None)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special=False)

    prompt: list[int] = []
    separator = next((found for mark in _FILE if (found := tokenizer.token_id(mark)) is not None), None)
    repository = next((found for mark in _REPOSITORY if (found := tokenizer.token_id(mark)) is not None), None)
    if extra and repository is not None:
        prompt += [repository, *encode("myproject\n")]
    for file in extra:
        prompt += encode("\n") if separator is None else [separator]
        prompt += encode(f"{file.filename}\n{file.text}")
    if extra and separator is not None:
        prompt += [separator, *encode("filename\n")]
    return [*prompt, before, *encode(prefix + begun), after, *encode(suffix), middle]
