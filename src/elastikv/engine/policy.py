"""What one step computes. Arithmetic only: nothing here has an effect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from elastikv.batch import SeqTokens
from elastikv.engine.requests import Request


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one request that a step computes: ``[start, stop)`` of its ``token_ids``."""

    request: Request
    start: int
    stop: int

    @property
    def completes(self) -> bool:
        """Whether the next token can be sampled after it."""
        return self.stop == len(self.request.token_ids)

    @property
    def entry(self) -> SeqTokens:
        """The chunk as an entry of a batch; logits are wanted if it completes the request's tokens."""
        tokens = self.request.token_ids[self.start : self.stop]
        return SeqTokens(self.request.session.seq_id, tokens, n_logits=int(self.completes))


def plan_step(
    running: Sequence[Request], n_held: Callable[[Request], int], *, n_batch: int, n_ubatch: int
) -> list[Chunk]:
    """One token of every sequence that generates, then chunks of prompts, oldest first, up to ``n_batch`` tokens.

    While others generate, prompts get no more than fills one ubatch: a long prompt slows the others'
    tokens down by a bounded time and never stops them.
    """
    held = {request: n_held(request) for request in running}
    generating = [request for request in running if len(request.token_ids) - held[request] == 1]
    chunks = [Chunk(request, held[request], held[request] + 1) for request in generating[:n_batch]]
    n_left = (min(n_batch, max(n_ubatch, len(chunks) + 1)) if chunks else n_batch) - len(chunks)
    for request in running:
        if request in generating or n_left <= 0:
            continue
        start, stop = held[request], len(request.token_ids)
        if request.checkpoint_at is not None and start < request.checkpoint_at:
            stop = request.checkpoint_at
        stop = min(stop, start + n_left)
        chunks.append(Chunk(request, start, stop))
        n_left -= stop - start
    return chunks
