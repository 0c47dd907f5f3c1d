"""Text to tokens and back; the tokenizer itself is Hugging Face's ``tokenizers``."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from elastikv.errors import CorruptFile, InvalidRequest, ModelError

_log = logging.getLogger(__name__)

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 4
_VOCABULARIES = ("*.model", "*vocab*", "*.tiktoken", "tekken.json")
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


class Tokenizer:
    """A tokenizer with the model's chat template.

    ``backend``: None for a model that came without one: token ids come and go, and what needs text is refused with
    InvalidRequest. ``special_tokens``: texts that the template may refer to, by their names in transformers
    (``"bos_token"``, ...).
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer | None,
        *,
        eos_token_ids: Sequence[int] = (),
        chat_template: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        self.backend = backend
        self.eos_token_ids = tuple(eos_token_ids)
        self.chat_template = chat_template
        self.special_tokens = dict(special_tokens or {})

    @property
    def n_vocab(self) -> int:
        return self.require_backend().get_vocab_size(with_added_tokens=True)

    @property
    def has_chat_template(self) -> bool:
        return self.chat_template is not None

    def require_backend(self) -> tokenizers.Tokenizer:
        """Raises InvalidRequest if the model came without one."""
        if self.backend is None:
            raise InvalidRequest("this model came without a tokenizer: give token ids, and no stop strings")
        return self.backend

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """``add_special``: with what the model wants around a text, such as a beginning-of-text token."""
        return self.require_backend().encode(text, add_special_tokens=add_special).ids

    def decode(self, token_ids: Sequence[int], skip_special: bool = True) -> str:
        return self.require_backend().decode(list(token_ids), skip_special_tokens=skip_special)

    def piece(self, token_id: int) -> str:
        """The text of a single token; without a tokenizer ``"token_id:5"``, as vLLM names it."""
        return f"token_id:{token_id}" if self.backend is None else self.decode([token_id])

    def token_id(self, token: str) -> int | None:
        """Id of exactly this token, None if there is none."""
        return self.require_backend().token_to_id(token)

    def stream_decoder(self, skip_special: bool = True) -> StreamDecoder | NoText:
        return NoText() if self.backend is None else StreamDecoder(self, skip_special)

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The conversation as the model's template writes it. Raises InvalidRequest if there is none or it objects."""
        if self.chat_template is None:
            raise InvalidRequest("this model has no chat template; use a plain prompt")
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            rendered, _ = render_jinja_template(
                conversations=[list(messages)],
                chat_template=self.chat_template,
                add_generation_prompt=add_generation_prompt,
                **{**self.special_tokens, **variables},
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise InvalidRequest(f"the chat template refuses these messages: {error}") from None
        return rendered[0]

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> list[int]:
        """Tokens of the conversation, ready for the model's reply. The template writes special tokens itself."""
        self.require_backend()
        return self.encode(self.render_chat(messages, **variables), add_special=False)


class StreamDecoder:
    """Text of tokens that come one by one: never half a character, and the same text as decoding all at once.

    The last tokens are decoded together with the ones before them, because a token's text may depend on those
    (leading spaces, bytes of one character).
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._ids: list[int] = []
        self._n_context = 0  # of _ids: shown already, kept for what the next ones mean after them
        self._n_shown = 0  # characters of what _ids decode to

    def push(self, token_id: int) -> str:
        """Text that is certain now. A character that is incomplete is held back, but nothing before it."""
        self._ids.append(token_id)
        text = self._decode(self._ids)
        n_broken = len(text) - len(text.rstrip(_REPLACEMENT))
        return self._show(text, len(text) - min(n_broken, _LONGEST_CHARACTER - 1))

    def flush(self) -> str:
        """What is still held back; bytes that are no character become U+FFFD."""
        text = self._decode(self._ids)
        return self._show(text, len(text))

    def _show(self, text: str, stop: int) -> str:
        news = text[self._n_shown : stop]
        self._n_shown = max(self._n_shown, stop)
        if news and stop == len(text):
            self._ids = self._ids[self._n_context :]
            self._n_context = len(self._ids)
            self._n_shown = len(self._decode(self._ids))
        return news

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids, self._skip_special)


class NoText:
    """Stands for a ``StreamDecoder`` where there is no tokenizer."""

    def push(self, token_id: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


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
        backend, eos_token_ids=eos, chat_template=_read_chat_template(folder, config), special_tokens=special
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
        return AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
    except (OSError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
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


def _token_text(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])
