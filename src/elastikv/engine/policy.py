"""What one step computes. Arithmetic only: nothing here has an effect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from elastikv.batch import SeqTokens
from elastikv.engine.requests import Request


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one request that a step computes: ``[start, stop)`` of its ``token_ids``, and a draft of what follows.

    draft: tokens behind the last of the request; none unless the chunk completes it.
    """

    request: Request
    start: int
    stop: int
    draft: list[int] = field(default_factory=list)

    @property
    def n_tokens(self) -> int:
        """Rows of the batch."""
        return self.stop - self.start + len(self.draft)

    @property
    def completes(self) -> bool:
        """Whether the next token can be sampled after it."""
        return self.stop == len(self.request.token_ids)

    @property
    def entry(self) -> SeqTokens:
        """The chunk as an entry of a batch; logits are wanted if it completes the request's tokens."""
        tokens = self.request.token_ids[self.start : self.stop] + self.draft
        n_logits = int(self.completes) + len(self.draft)
        return SeqTokens(self.request.session.seq_id, tokens, n_logits, is_draft=bool(self.draft))


def plan_step(
    running: Sequence[Request], n_held: Callable[[Request], int], *, n_batch: int, n_ubatch: int
) -> list[Chunk]:
    """The new tokens of every sequence that generates, then chunks of prompts, oldest first, up to ``n_batch`` tokens.

    New is what the last step brought: one token, or several where the form of the text forces some. While others
    generate, prompts get no more than fills one ubatch: a long prompt slows the others' tokens down by a bounded
    time and never stops them.
    """
    held = {request: n_held(request) for request in running}
    generating = [request for request in running if len(request.token_ids) - held[request] <= max(request.n_news, 1)]
    chunks: list[Chunk] = []
    n_left = n_batch
    for request in generating[:n_batch]:
        n_others = len(generating) - len(chunks) - 1  # each of which is to get a token, too
        chunks.append(_chunk(request, held[request], max(n_left - n_others, 1)))
        n_left -= chunks[-1].n_tokens
    if chunks:
        n_left = min(n_left, max(n_ubatch - (n_batch - n_left), 1))
    for request in running:
        if request in generating or n_left <= 0:
            continue
        chunks.append(_chunk(request, held[request], n_left))
        n_left -= chunks[-1].n_tokens
    return chunks


def _chunk(request: Request, start: int, n_most: int) -> Chunk:
    stop = len(request.token_ids)
    if request.checkpoint_at is not None and start < request.checkpoint_at:
        stop = request.checkpoint_at
    return Chunk(request, start, min(stop, start + n_most))
