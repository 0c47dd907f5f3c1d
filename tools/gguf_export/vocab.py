"""A Hugging Face folder's tokenizer as GGUF metadata: the counterpart of ``weights/gguf/tokenizer.py``."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, SpecialVocab, TokenType
from tokenizers import Tokenizer, pre_tokenizers

from elastikv.errors import UnsupportedModel
from elastikv.models.config import ModelConfig
from elastikv.weights.gguf.tokenizer import NAMES, SPLITS

_LOG = logging.getLogger(__name__)
_ASSUMED_SPLITS = {"llama": "llama-bpe", "mistral": "tekken", "qwen3_5": "qwen35"}
_ASSUMED_SPLIT = "qwen2"
"""Of architectures, and of all others."""


def write_vocab(writer: GGUFWriter, folder: Path, config: ModelConfig) -> None:
    """Tokens, their types, merges or scores, special tokens and the chat template.

    A folder without ``tokenizer.json`` gets a stand-in of single bytes: enough to run token ids.
    """
    file = folder / "tokenizer.json"
    parsed = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else _stand_in(config)
    model = parsed["model"]
    if model["type"] != "BPE":
        raise UnsupportedModel(f"{folder}: a tokenizer of type {model['type']} cannot be written to a GGUF, only BPE")
    tokens, types = _tokens(parsed, config.n_vocab)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ", 1)) for merge in model["merges"]]
    if model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        writer.add_token_scores(_scores(tokens, merges))
        writer.add_add_space_prefix(_prepends_space(parsed))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_split_name(parsed.get("pre_tokenizer"), config.architecture))
        # An empty array cannot be written, and llama.cpp wants one: a merge that never applies does no harm.
        writer.add_token_merges([" ".join(merge) for merge in merges] or [f"{tokens[0]} {tokens[0]}"])
    _write_special(writer, folder, config, tokens)


def _tokens(parsed: dict[str, Any], n_vocab: int) -> tuple[list[str], list[int]]:
    """Token texts and types by id; ids without a token are padding."""
    tokens = [f"[PAD{token_id}]" for token_id in range(n_vocab)]
    types = [int(TokenType.UNUSED)] * n_vocab
    unknown = parsed["model"].get("unk_token")
    bytes_named = parsed["model"].get("byte_fallback")
    for token, token_id in parsed["model"]["vocab"].items():
        is_byte = bytes_named and len(token) == len("<0x00>") and token.startswith("<0x")
        tokens[token_id] = token
        types[token_id] = TokenType.UNKNOWN if token == unknown else TokenType.BYTE if is_byte else TokenType.NORMAL
    for added in parsed.get("added_tokens", ()):
        tokens[added["id"]] = added["content"]
        if types[added["id"]] != TokenType.UNKNOWN:
            types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    return tokens, types


def _scores(tokens: list[str], merges: list[tuple[str, ...]]) -> list[float]:
    """Minus the rank of the first merge that makes a token; what nothing makes comes last."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault("".join(merge), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def _prepends_space(parsed: dict[str, Any]) -> bool:
    """Whether a text begins as if after a space: a Prepend normaliser, or a Metaspace that does the same."""
    described = json.dumps([parsed.get("normalizer"), parsed.get("pre_tokenizer")])
    return '"Prepend"' in described or '"prepend_scheme": "first"' in described or '"always"' in described


def _split_name(pre_tokenizer: dict[str, Any] | None, architecture: str) -> str:
    """llama.cpp's name of the patterns; where it knows none, the architecture's, with a warning."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer or {}])
    patterns = tuple(step["pattern"]["Regex"] for step in steps if "Regex" in step.get("pattern", {}))
    if patterns in NAMES:
        return NAMES[patterns]
    if not patterns and any(step.get("type") == "ByteLevel" and step.get("use_regex", True) for step in steps):
        return "gpt-2"
    assumed = _ASSUMED_SPLITS.get(architecture, _ASSUMED_SPLIT)
    _LOG.warning("GGUF has no name for how this tokenizer splits text; written as %r", assumed)
    return assumed


def _write_special(writer: GGUFWriter, folder: Path, config: ModelConfig, tokens: list[str]) -> None:
    """Ids of BOS, EOS and the like and the template, as the gguf package finds them; our config's EOS goes first.

    Whether BOS and EOS are put around a text is what the tokenizer does, not what files beside it say.
    """
    special = SpecialVocab(folder, load_merges=False, n_vocab=len(tokens))
    if config.eos_token_ids:
        special.special_token_ids["eos"] = config.eos_token_ids[0]
    first, last = _put_around(folder / "tokenizer.json")
    if first is not None:
        special.special_token_ids["bos"] = first
    special.add_special_token = {"bos": first is not None, "eos": last is not None}
    special.add_to_gguf(writer, quiet=True)


def _put_around(file: Path) -> tuple[int | None, int | None]:
    """Tokens that the tokenizer puts before and after a text."""
    if not file.is_file():
        return None, None
    tokenizer = Tokenizer.from_file(str(file))
    bare = tokenizer.encode("x", add_special_tokens=False).ids
    whole = tokenizer.encode("x").ids
    return whole[0] if whole[: len(bare)] != bare else None, whole[-1] if whole[-len(bare) :] != bare else None


def _stand_in(config: ModelConfig) -> dict[str, Any]:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: config.n_vocab]
    vocabulary = {byte: token_id for token_id, byte in enumerate(alphabet)}
    split = {"type": "Split", "pattern": {"Regex": SPLITS[_ASSUMED_SPLITS.get(config.architecture, _ASSUMED_SPLIT)][0]}}
    return {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}, "pre_tokenizer": split}
