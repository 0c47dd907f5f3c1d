"""Which tokens end what DRY takes for a repetition: those that have, or begin, certain texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache

import numpy as np

from elastikv.errors import InvalidRequest
from elastikv.weights.tokenizer import Tokenizer

Tails = Mapping[int, Sequence[tuple[int, ...]]]


class Breakers:
    """tails: for the tokens that begin a breaker, the tokens that complete it; () where nothing is left to say."""

    def __init__(self, tails: Tails | None = None) -> None:
        self._tails = tails or {}

    def breaks(self, token_id: int) -> bool:
        """Whether this token is a breaker all alone."""
        return () in self._tails.get(token_id, ())

    def n_since(self, recent: np.ndarray) -> int:
        """How many of the tokens, ``recent[-1]`` being the last, come after the last breaker."""
        tokens = recent.tolist()
        for start in range(len(tokens) - 1, -1, -1):
            rest = tokens[start + 1 :] if tokens[start] in self._tails else []
            found = [len(tail) for tail in self._tails.get(tokens[start], ()) if tuple(rest[: len(tail)]) == tail]
            if found:
                return len(rest) - max(found)
        return len(tokens)


class BreakersOfTokenizer:
    """Finds, and keeps, what certain texts are among a tokenizer's tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.find = lru_cache(maxsize=16)(self._find)

    def _find(self, texts: tuple[str, ...]) -> Breakers:
        """Raises InvalidRequest if the model came without a tokenizer."""
        if not texts:
            return Breakers()
        if self._tokenizer.backend is None:
            raise InvalidRequest("this model came without a tokenizer: DRY needs dry_sequence_breakers=[]")
        tails: dict[int, list[tuple[int, ...]]] = {}
        for text in texts:
            for token_id, piece in enumerate(self._pieces):
                for tail in self._tails_after(piece, text):
                    tails.setdefault(token_id, []).append(tail)
        return Breakers(tails)

    def _tails_after(self, piece: str, text: str) -> list[tuple[int, ...]]:
        if text in piece:
            return [()]
        n_begun = [n for n in range(1, min(len(text) - 1, len(piece)) + 1) if piece.endswith(text[:n])]
        return [tuple(self._tokenizer.encode(text[n:], add_special=False)) for n in n_begun]

    @cached_property
    def _pieces(self) -> list[str]:
        decode = self._tokenizer.decode
        return [decode([token_id], skip_special=False) for token_id in range(self._tokenizer.n_vocab)]
