"""Text to tokens and back; the tokenizer itself is Hugging Face's ``tokenizers``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from elastikv.errors import InvalidRequest

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_LONGEST_CHARACTER = 4


class AddedToken(Protocol):
    """What a ``Backend`` says of a token."""

    @property
    def content(self) -> str:
        """Its text."""
        ...

    @property
    def special(self) -> bool:
        """Whether it is left out of texts."""
        ...


class Backend(Protocol):
    """What is needed of Hugging Face's ``tokenizers.Tokenizer``; another tokenizer may look the same."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Any:
        """Something whose ``ids`` are the tokens of a text."""
        ...

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        """The text of tokens."""
        ...

    def token_to_id(self, token: str) -> int | None:
        """Id of exactly this token, None if there is none."""
        ...

    def get_vocab_size(self, *, with_added_tokens: bool = True) -> int:
        """Tokens that it knows."""
        ...

    def get_added_tokens_decoder(self) -> Mapping[int, AddedToken]:
        """Tokens that stand for more than text, by their ids."""
        ...


class Tokenizer:
    """A tokenizer with the model's chat template.

    ``backend``: None for a model that came without one: token ids come and go, and what needs text is refused with
    InvalidRequest. ``special_tokens``: texts that the template may refer to, by their names in transformers
    (``"bos_token"``, ...). ``response_template``: how to read a reply, as transformers' parser takes it.
    """

    def __init__(
        self,
        backend: Backend | None,
        *,
        eos_token_ids: Sequence[int] = (),
        chat_template: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
        response_template: Mapping[str, Any] | None = None,
    ) -> None:
        self.backend = backend
        self.eos_token_ids = tuple(eos_token_ids)
        self.chat_template = chat_template
        self.special_tokens = dict(special_tokens or {})
        self.response_template = response_template

    @property
    def n_vocab(self) -> int:
        """Tokens that it knows, added ones included. Raises InvalidRequest without a backend."""
        return self.require_backend().get_vocab_size(with_added_tokens=True)

    @property
    def has_chat_template(self) -> bool:
        """Whether ``render_chat`` can be used."""
        return self.chat_template is not None

    def require_backend(self) -> Backend:
        """The backend. Raises InvalidRequest if the model came without one."""
        if self.backend is None:
            raise InvalidRequest("this model came without a tokenizer: give token ids, and no stop strings")
        return self.backend

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Token ids of a text. Raises InvalidRequest without a backend.

        add_special: with the tokens that the model wants around a text, such as beginning-of-text.
        """
        ids: list[int] = self.require_backend().encode(text, add_special_tokens=add_special).ids
        return ids

    def decode(self, token_ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of tokens. Raises InvalidRequest without a backend. skip_special: leave special tokens out."""
        return self.require_backend().decode(list(token_ids), skip_special_tokens=skip_special)

    def piece(self, token_id: int) -> str:
        """The text of a single token; without a tokenizer ``"token_id:5"``, as vLLM names it."""
        return f"token_id:{token_id}" if self.backend is None else self.decode([token_id])

    def token_id(self, token: str) -> int | None:
        """Id of exactly this token, None if there is none."""
        return self.require_backend().token_to_id(token)

    def stream_decoder(self, skip_special: bool = True) -> StreamDecoder | NoText:
        """A decoder for tokens that come one by one; it gives no text if there is no backend."""
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
        except (TemplateError, TypeError, ValueError, RecursionError) as error:
            raise InvalidRequest(f"the chat template refuses these messages: {error}") from None
        text: str = rendered[0]
        return text

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
    """The ``StreamDecoder`` of a model without a tokenizer."""

    def push(self, token_id: int) -> str:
        """No text."""
        return ""

    def flush(self) -> str:
        """No text."""
        return ""
