"""The tokenizer in a Hugging Face folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from elastikv.errors import CorruptFile, ModelError, one_line
from elastikv.weights.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

_VOCABULARIES = ("*.model", "*vocab*", "*.tiktoken", "tekken.json")
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


def read_hf_tokenizer(folder: Path, eos_token_ids: Sequence[int]) -> Tokenizer:
    """From ``tokenizer.json``, or, for older folders without one, from what transformers makes of the other files.

    A folder with none of these gives a tokenizer without a backend. Raises ModelError, CorruptFile.
    """
    config = _read_tokenizer_config(folder)
    special = {name: _token_text(config[name]) for name in _SPECIAL_NAMES if config.get(name)}
    backend = _read_backend(folder)
    eos = list(eos_token_ids)
    if backend is not None and not eos and "eos_token" in special:
        eos = [token for token in (backend.token_to_id(special["eos_token"]),) if token is not None]
    return Tokenizer(
        backend,
        eos_token_ids=eos,
        chat_template=_read_chat_template(folder, config),
        special_tokens=special,
        response_template=_read_response_template(folder, config),
    )


def _read_backend(folder: Path) -> tokenizers.Tokenizer | None:
    file = folder / "tokenizer.json"
    if file.is_file():
        try:
            return tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises nothing narrower
            raise CorruptFile(f"{file}: not a tokenizer ({error})") from None
    # Asked first, for transformers would make empty tokenizers of nothing.
    if not any(True for pattern in _VOCABULARIES for _ in folder.glob(pattern)):
        _log.warning("%s: no tokenizer in this folder; token ids are all that comes and goes", folder)
        return None
    from transformers import AutoTokenizer

    try:
        backend: tokenizers.Tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
        if not backend.get_vocab_size(with_added_tokens=False):
            raise ValueError("its vocabulary is empty")
        return backend
    except (OSError, ValueError, AttributeError) as error:
        reason = one_line(error)
        raise ModelError(f"{folder}: transformers cannot read the tokenizer in this folder ({reason})") from None


def _read_tokenizer_config(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CorruptFile(f"{file}: cannot be read as JSON ({error})") from None


def _read_chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry["name"]: entry["template"] for entry in template}
        return named.get("default")
    return template


def _read_response_template(folder: Path, config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    template: Mapping[str, Any] | None = config.get("response_template")
    if template is None:
        return None
    from transformers.utils.chat_parsing.response_templates import load_response_template

    try:
        load_response_template(dict(template))
    except (ValueError, TypeError, KeyError) as error:
        _log.warning("%s: the response_template is not used (%s)", folder, error)
        return None
    return template


def _token_text(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])
