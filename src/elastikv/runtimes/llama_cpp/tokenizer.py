"""llama.cpp's own tokenizer, as the backend of a ``Tokenizer``: it knows that of every file which llama.cpp runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from elastikv.runtimes.llama_cpp.model import Model

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class Encoding(NamedTuple):
    """What ``encode`` gives."""

    ids: list[int]


class SpecialToken(NamedTuple):
    """A ``weights.tokenizer.AddedToken``."""

    content: str
    special: bool = True


class LlamaCppBackend:
    """A ``weights.tokenizer.Backend``."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def encode(self, text: str, *, add_special_tokens: bool = True) -> Encoding:
        """Token ids of a text; special tokens in it are taken as such."""
        return Encoding(self._model.tokenize(text.encode("utf-8", "replace"), add_special=add_special_tokens))

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of tokens; bytes that are no character become U+FFFD."""
        return self._model.detokenize(ids, with_special=not skip_special_tokens).decode("utf-8", "replace")

    def token_to_id(self, token: str) -> int | None:
        """Id of exactly this token."""
        ids = self._model.tokenize(token.encode("utf-8", "replace"), add_special=False)
        return ids[0] if len(ids) == 1 and self._model.token_text(ids[0]) == token else None

    def get_vocab_size(self, *, with_added_tokens: bool = True) -> int:
        """Tokens that it knows."""
        return self._model.n_vocab

    def get_added_tokens_decoder(self) -> dict[int, SpecialToken]:
        """Control tokens, by their ids."""
        return {token: SpecialToken(self._model.token_text(token)) for token in self._model.control_tokens()}

    def grammar_vocabulary(self, n_vocab: int, eos_token_ids: list[int]) -> LLTokenizer:
        """See ``engine.constraint.KnowsGrammars``."""
        from llguidance.llamacpp import lltokenizer_from_vocab

        return lltokenizer_from_vocab(self._model.vocab, n_vocab, eos_token_ids)
