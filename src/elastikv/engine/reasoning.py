"""Thoughts before the answer: where they end, and how many tokens they may take."""

from __future__ import annotations

from elastikv.engine.params import Reasoning
from elastikv.weights.tokenizer import Tokenizer


class Thoughts:
    """Follows one generation through its thoughts, token by token. Raises InvalidRequest without a tokenizer."""

    def __init__(self, params: Reasoning, tokenizer: Tokenizer) -> None:
        self.start_id = None if params.is_open else tokenizer.token_id(params.start)
        self.may_start = self.start_id is not None
        self.is_open = params.is_open
        self._budget = params.budget
        self._end = params.end
        self._end_ids = tokenizer.encode(f"\n{params.end}\n\n", add_special=False)
        self._decoder = tokenizer.stream_decoder(skip_special=False)
        self._text = ""
        self._n_tokens = 0
        self._n_closing = 0  # tokens of the end that are still to come

    def takes(self, token_id: int) -> bool:
        """Whether a token is one of the thoughts, or of the texts around them, and not of the answer."""
        if self.may_start:
            self.may_start, self.is_open = False, token_id == self.start_id
            return self.is_open
        if not self.is_open:
            return False
        if self._n_closing:
            self._n_closing -= 1
            self.is_open = self._n_closing > 0
            return True
        self._n_tokens += 1
        self._text = self._text[-len(self._end) :] + self._decoder.push(token_id)
        self.is_open = self._end not in self._text
        return True

    def closing(self) -> list[int]:
        """The tokens that end the thoughts, once these have taken what they may; else none."""
        if not self.is_open or self._n_closing or self._budget is None or self._n_tokens < self._budget:
            return []
        self._n_closing = len(self._end_ids)
        return self._end_ids
