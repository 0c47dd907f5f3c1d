"""The tokenizer that a GGUF carries: vocabulary, merges or scores, and the name of how text is split before.

Two kinds serve the architectures here. ``gpt2``: byte-level BPE; texts are split by llama.cpp's patterns of the name
in the file. ``llama``: SentencePiece BPE; a piece's score says how early it is merged.
transformers (5.23) builds tokenizers from GGUF files too, but reads the file again and ignores ``add_space_prefix``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from gguf import TokenType
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from elastikv.errors import CorruptFile, UnsupportedModel
from elastikv.weights.gguf.header import GGUFHeader
from elastikv.weights.tokenizer import Tokenizer

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
_TEKKEN_TAIL = r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN_OWN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + _TEKKEN_TAIL
)
# llama.cpp knows upper and lower case in ASCII alone, and takes no marks for letters.
_UPPER, _LOWER = r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]"
_TEKKEN = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*" + _TEKKEN_TAIL
_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_GPT2 = _GPT2_WORDS + r"|\s+"

SPLITS: dict[str, tuple[str, ...]] = {
    "qwen2": (_QWEN2,),
    "deepseek-r1-qwen": (_QWEN2,),
    "qwen35": (_QWEN35,),
    "llama-bpe": (_LLAMA3,),
    "llama3": (_LLAMA3,),
    "llama-v3": (_LLAMA3,),
    "smaug-bpe": (_LLAMA3,),
    "tekken": (_TEKKEN,),
    "smollm": (r"\p{N}", _GPT2),
    "gpt-2": (_GPT2,),
    "default": (r"[\p{P}$+<=>^~|]+", _GPT2_WORDS, r"\p{N}+", r"[0-9]{3}"),
}
"""``tokenizer.ggml.pre`` -> patterns that split a text, one after the other, as llama.cpp does."""

NAMES: dict[tuple[str, ...], str] = {(_TEKKEN_OWN,): "tekken"} | {
    patterns: name for name, patterns in reversed(SPLITS.items())
}
"""A folder's patterns -> the name that a GGUF gives them."""

NORMALISED = ("qwen2", "qwen35", "deepseek-r1-qwen")
"""Compose characters before a text is split, as the models' own tokenizers do and llama.cpp does not."""
_WHOLE_WORDS_FIRST = ("llama-bpe", "llama3", "llama-v3", "tekken")
"""Take a piece that is a token as it is, even where merges would not lead to it. These also begin with a BOS."""

_SPACE = "\u2581"
_SPECIAL_KEYS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


_END_OF_TURN_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_END_OF_TURN_TOKENS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
)
"""Tokens that end a generation whether or not the metadata says so; llama.cpp goes by these names too."""


def read_gguf_tokenizer(path: Path, header: GGUFHeader, eos_token_ids: Sequence[int]) -> Tokenizer:
    """Raises UnsupportedModel for other kinds of tokenizers or splits, CorruptFile where there is no vocabulary."""
    tokens = header.strings("tokenizer.ggml.tokens")
    if not tokens:
        raise CorruptFile(f"{path}: the file holds no vocabulary")
    kind = _value(header, "model", "")
    if kind == "gpt2":
        backend = _byte_level(path, header, tokens)
    elif kind == "llama":
        backend = _sentencepiece(header, tokens)
    else:
        raise UnsupportedModel(f"{path}: tokenizer {kind!r} is not supported; supported: gpt2, llama")
    _add_special_tokens(backend, header, tokens)
    special = {
        name: tokens[token_id]
        for name, key in _SPECIAL_KEYS.items()
        if (token_id := _value(header, key)) is not None and token_id < len(tokens)
    }
    _add_first_and_last(backend, header, special)
    template = header.metadata.get("tokenizer.chat_template")
    return Tokenizer(backend, eos_token_ids=eos_token_ids, chat_template=template, special_tokens=special)


def end_tokens(header: GGUFHeader) -> list[int]:
    """Ids of what ends a generation, the file's own EOS first."""
    ids = [header.metadata.get(f"tokenizer.ggml.{key}") for key in _END_OF_TURN_KEYS]
    tokens: list[bytes] = header.metadata.get("tokenizer.ggml.tokens", [])
    names = {name.encode() for name in _END_OF_TURN_TOKENS}
    ids += [token_id for token_id, token in enumerate(tokens) if token in names]
    return list(dict.fromkeys(int(token_id) for token_id in ids if token_id is not None))


def _value(header: GGUFHeader, key: str, default: Any = None) -> Any:
    return header.metadata.get(f"tokenizer.ggml.{key}", default)


def _byte_level(path: Path, header: GGUFHeader, tokens: list[str]) -> tokenizers.Tokenizer:
    split = _value(header, "pre", "default")
    if split not in SPLITS:
        raise UnsupportedModel(f"{path}: pre-tokenizer {split!r} is not supported; supported: {', '.join(SPLITS)}")
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    listed = (merge.partition(" ") for merge in header.strings("tokenizer.ggml.merges"))
    merges = [(left, right) for left, _, right in listed if {left, right, left + right} <= vocabulary.keys()]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, ignore_merges=split in _WHOLE_WORDS_FIRST)
    )
    if split in NORMALISED:
        backend.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS[split]]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(header: GGUFHeader, tokens: list[str]) -> tokenizers.Tokenizer:
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    merges = list(_merges_by_score(vocabulary, _value(header, "scores", ()), _token_types(header, tokens)))
    unknown = _value(header, "unknown_token_id", 0)
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True)
    )
    starts_with_space = bool(_value(header, "add_space_prefix", True))
    to_pieces = normalizers.Replace(" ", _SPACE)
    backend.normalizer = (
        normalizers.Sequence([normalizers.Prepend(_SPACE), to_pieces]) if starts_with_space else to_pieces
    )
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if starts_with_space:
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    return backend


def _merges_by_score(
    vocabulary: dict[str, int], scores: Sequence[float], types: Sequence[int]
) -> Iterator[tuple[str, str]]:
    """Every way to make a piece of two others, pieces of the highest score first."""
    pieces = [
        (-scores[token_id], token_id, token)
        for token, token_id in vocabulary.items()
        if token_id < len(scores) and types[token_id] == TokenType.NORMAL and len(token) > 1
    ]
    for _, _, token in sorted(pieces):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                yield left, right


def _token_types(header: GGUFHeader, tokens: list[str]) -> Sequence[int]:
    types = _value(header, "token_type")
    return [TokenType.NORMAL] * len(tokens) if types is None else types.tolist()


def _add_special_tokens(backend: tokenizers.Tokenizer, header: GGUFHeader, tokens: list[str]) -> None:
    """Control tokens are never shown; user-defined ones are, but are never split either."""
    typed = list(zip(tokens, _token_types(header, tokens), strict=False))
    control = [token for token, kind in typed if kind in (TokenType.CONTROL, TokenType.UNKNOWN)]
    user_defined = [token for token, kind in typed if kind == TokenType.USER_DEFINED]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    backend.add_tokens([AddedToken(token, normalized=False) for token in user_defined])


def _add_first_and_last(backend: tokenizers.Tokenizer, header: GGUFHeader, special: dict[str, str]) -> None:
    """What the model wants around a text: what the file says, else what llama.cpp assumes of its kind."""
    begins = _value(header, "model") == "llama" or _value(header, "pre") in _WHOLE_WORDS_FIRST
    parts = ["$A"]
    if _value(header, "add_bos_token", begins) and "bos_token" in special:
        parts.insert(0, special["bos_token"])
    if _value(header, "add_eos_token", False) and "eos_token" in special:
        parts.append(special["eos_token"])
    if len(parts) > 1:
        ids = [(token, backend.token_to_id(token)) for token in parts if token != "$A"]
        backend.post_processor = processors.TemplateProcessing(single=parts, special_tokens=ids)
