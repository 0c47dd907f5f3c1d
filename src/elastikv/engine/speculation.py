"""Several tokens of a sequence in one step: drafts go into the batch behind what is certain, and are taken back.

A row of logits counts only if all tokens before it are those that were chosen, and each is chosen from its own row as
without drafts: a text is the same with and without (Leviathan et al., arXiv:2211.17192, where a draft is certain of
itself). What a generation loses is only the time of rows whose draft was wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from elastikv.engine.drafting import Drafter
from elastikv.engine.options import SchedulerOptions
from elastikv.engine.policy import Chunk
from elastikv.engine.requests import Request
from elastikv.memory.base import Memory

_MOST_ROWS = 8
"""Rows of a sequence in a step with a draft, where some of them may have to be computed again."""


class Speculation:
    """Extends the chunks of a step by drafts, says which rows count, and removes the cells of the others.

    Recurrent states cannot go back by single tokens, but to what they were before a step. What of it was right is then
    computed again in the next step, along with the token that was chosen instead.
    """

    def __init__(self, memory: Memory, options: SchedulerOptions) -> None:
        self._memory = memory
        self._options = options
        self._is_on = options.speculation != "none" and memory.undoes_calls
        self._is_held = False
        self._open: dict[Request, Chunk] = {}  # whose drafts have cells, or may have

    def drafter(self) -> Drafter | None:
        """For a new generation; None where nothing is to be drafted."""
        return Drafter(self._options.ngram_size_n, self._options.ngram_size_m) if self._is_on else None

    def extend(self, chunks: Sequence[Chunk], n_batch: int) -> list[Chunk]:
        """The same chunks, with drafts as far as ``n_batch`` has rows left."""
        n_left = n_batch - sum(chunk.n_tokens for chunk in chunks)
        extended: list[Chunk] = []
        for chunk in chunks:
            draft = [] if self._is_held else self._draft(chunk, n_left)
            extended.append(replace(chunk, draft=draft) if draft else chunk)
            n_left -= len(draft)
        self._open = {chunk.request: chunk for chunk in extended if chunk.draft}
        return extended

    def concessions(self) -> Iterator[None]:
        """Without drafts less memory will do, for the rest of this step."""
        if self._open:
            self._is_held = True
            yield

    def counting(self, chunk: Chunk, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Of float32 ``[1 + n_draft, n_vocab]`` those to choose a token from, each after the one before was used."""
        request, n_right = chunk.request, 0
        drafter = request.drafter if chunk.draft else None
        if drafter:
            drafter.n_drafted += len(chunk.draft)
        while True:
            yield rows[n_right]
            news = request.token_ids[chunk.stop :]
            if request.finished or news != chunk.draft[: len(news)]:
                break
            if drafter:
                drafter.n_accepted += len(news) - n_right
            n_right = len(news)
        if drafter:
            drafter.learn(len(request.token_ids), len(chunk.draft), n_right)

    def settle(self) -> None:
        """Remove the cells of drafts that did not come true. Interrupted, it is done again."""
        for request, chunk in list(self._open.items()):
            seq_id, n_true = request.session.seq_id, _n_common(chunk.draft, request.token_ids[chunk.stop :])
            if self._memory.n_tokens(seq_id) > chunk.stop + n_true:
                # Pages behind a window may have gone for a draft's sake: then all is computed again.
                self._memory.seq_rm(seq_id, self._memory.truncation_point(seq_id, chunk.stop + n_true))
            del self._open[request]
        self._is_held = False

    def _draft(self, chunk: Chunk, n_left: int) -> list[int]:
        request, memory = chunk.request, self._memory
        if request.drafter is None or not request.n_generated or not chunk.completes:
            return []
        n_most = memory.n_ctx - chunk.stop - 1
        if not memory.cuts_anywhere:
            n_most = min(n_most, max(_MOST_ROWS - chunk.n_tokens, 0))
        elif memory.truncation_point(request.session.seq_id, 1) != 1:  # windows have let go of the beginning
            return []
        if request.params.max_tokens is not None:
            n_most = min(n_most, request.params.max_tokens - request.n_generated - 1)
        return request.drafter.draft(request.token_ids, min(n_most, n_left))


def _n_common(draft: Sequence[int], news: Sequence[int]) -> int:
    n_common = 0
    for drafted, chosen in zip(draft, news, strict=False):
        if drafted != chosen:
            break
        n_common += 1
    return n_common
