"""What the scheduler may do, and what one step computes. Arithmetic only: nothing here has an effect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from elastikv.arguments import instance, whole_number
from elastikv.batch import SeqTokens
from elastikv.engine.requests import Request
from elastikv.errors import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerOptions:
    """
    n_parallel: sequences that run at once; more requests wait.
    max_queue: requests that may wait; more are refused (QueueFull).
    idle_release_seconds: an idle session gives back spare capacity after this time (None: never).
    idle_drop_seconds: an idle session is parked, or dropped, after this time (None: never).
    park_dir: a folder for the cells of sessions that have to leave memory (None: they are dropped).
    prefix_reuse: requests may start from cells that earlier ones computed.
    max_idle: idle sessions that are kept in memory, and max_parked: on disk; beyond, the oldest goes.
    """

    n_parallel: int = 4
    max_queue: int = 64
    idle_release_seconds: float | None = None
    idle_drop_seconds: float | None = None
    park_dir: str | Path | None = None
    prefix_reuse: bool = True
    max_idle: int = 16
    max_parked: int = 256

    def __post_init__(self) -> None:
        for name, least in (("n_parallel", 1), ("max_queue", 1), ("max_idle", 0), ("max_parked", 1)):
            whole_number(name, getattr(self, name), least)
        for name in ("idle_release_seconds", "idle_drop_seconds"):
            seconds = getattr(self, name)
            if seconds is not None and (not isinstance(seconds, (int, float)) or not seconds >= 0):
                raise InvalidRequest(f"{name} must be at least 0, got {seconds!r}; leave it out for never")
        instance("prefix_reuse", self.prefix_reuse, bool, "True or False")
        instance("park_dir", self.park_dir, (str, Path, type(None)), "the path of a folder")


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
