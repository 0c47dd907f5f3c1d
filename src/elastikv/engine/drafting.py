"""Guesses at the tokens that follow, from the text itself. Knows tokens only: no requests, no memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_FIRST = 4
"""Tokens of a first guess: enough to gain by, few enough to lose little."""

_LONGEST_PAUSE = 256
"""Tokens between guesses where none comes true."""

_BYTES = np.dtype(np.int32).itemsize


class Drafter:
    """Prompt lookup for one generation: what followed the last ``size_n`` tokens where they stood before.

    Follows github.com/apoorvumang/prompt-lookup-decoding, and llama.cpp's ``ngram-simple`` in its names. How much is
    guessed follows what came true: twice as much as the last time at most ``size_m``; after a guess of which less than
    half was right, nothing for a while that doubles each time.
    """

    def __init__(self, size_n: int, size_m: int) -> None:
        self.n_drafted = self.n_accepted = 0
        self._size_n, self._size_m = size_n, size_m
        self._n_most = min(_FIRST, size_m)
        self._pause, self._resume_at = 1, 0
        self._text = bytearray()  # int32, as many of the tokens as were looked at

    def draft(self, token_ids: Sequence[int], n_most: int) -> list[int]:
        """At most ``n_most`` tokens that may follow ``token_ids``, which only ever get longer; often none."""
        n_most = min(n_most, self._n_most)
        if n_most <= 0 or len(token_ids) < self._resume_at:
            return []
        start = self._last_match(token_ids)
        if start is None:
            return []
        n_known = len(token_ids) - start  # what runs into the end repeats itself, so it goes on from its start
        return [token_ids[start + i % n_known] for i in range(n_most)]

    def learn(self, n_tokens: int, n_drafted: int, n_accepted: int) -> None:
        """Of ``n_drafted`` tokens the first ``n_accepted`` came true; the text has ``n_tokens`` now."""
        self._n_most = min(max(2 * n_accepted, 1), self._size_m)
        if 2 * n_accepted >= n_drafted:
            self._pause = 1
            return
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._resume_at = n_tokens + self._pause

    def _last_match(self, token_ids: Sequence[int]) -> int | None:
        """Behind the last earlier place of the last ``size_n`` tokens."""
        self._text += np.asarray(token_ids[len(self._text) // _BYTES :], np.int32).tobytes()
        size = self._size_n * _BYTES
        sought, end = bytes(self._text[-size:]), len(self._text) - 1
        while (found := self._text.rfind(sought, 0, end)) % _BYTES and found >= 0:
            end = found + size - 1
        return found // _BYTES + self._size_n if found >= 0 else None
