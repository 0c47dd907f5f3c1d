"""One replica: sessions that hold cells on a budget, and how long what it computes takes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from bench.fleet.trace import Request, Segment
from elastikv.integrations.ray.prefixes import HeldMarks


@dataclass(frozen=True, slots=True)
class Machine:
    """What every replica has: cells of its budget, replies computed at once, requests that may wait, tokens a second.

    Prompts are computed one after the other at ``prefill`` tokens a second, each reply at ``decode``, whatever runs
    beside it.
    """

    n_cells: int = 200_000
    n_parallel: int = 4
    max_queue: int = 64
    prefill: float = 4000.0
    decode: float = 40.0


@dataclass(slots=True)
class Session:
    """Cells of one conversation, as ``SessionInfo`` tells of them; a cell counts as a byte."""

    id: int
    prompt: tuple[Segment, ...]
    reply: Segment
    committed_bytes: int
    state: Literal["running", "idle"]
    last_used: float

    @property
    def n_prompt(self) -> int:
        """Tokens."""
        return self.committed_bytes - self.reply[1]


@dataclass(frozen=True, slots=True)
class Started:
    """A request that has begun: when its first and last token come, and prompt tokens that need not be computed."""

    request: Request
    session: Session
    first: float
    last: float
    n_cached: int


def n_common(ours: tuple[Segment, ...], theirs: tuple[Segment, ...]) -> int:
    """Tokens that two texts have in common from the start; a segment is all or nothing."""
    n_tokens = 0
    for mine, other in zip(ours, theirs, strict=False):
        if mine != other:
            break
        n_tokens += mine[1]
    return n_tokens


class Replica:
    """Takes requests in turn. A request's memory is there for all of its tokens before it begins."""

    def __init__(self, name: int, machine: Machine) -> None:
        self.name = name
        self.machine = machine
        self.sessions: dict[int, Session] = {}  # the one that was used last is the last
        self.queue: deque[Request] = deque()
        self.n_running = 0
        self.n_refusals = 0
        self.busy_seconds = 0.0
        self._held = HeldMarks()
        self._n_sessions = 0
        self._n_used = 0
        self._prefill_free = 0.0

    @property
    def n_requests(self) -> int:
        """That run or wait."""
        return self.n_running + len(self.queue)

    def offer(self, request: Request) -> bool:
        """Let it wait here; False: the queue is full, or its tokens will never fit."""
        if len(self.queue) >= self.machine.max_queue or _n_cells(request) > self.machine.n_cells:
            return False
        self.queue.append(request)
        return True

    def start(self, now: float) -> Iterator[Started]:
        """Begin what there is a place and memory for."""
        while self.queue and self.n_running < self.machine.n_parallel:
            begun = self._begin(self.queue[0], now)
            if begun is None:
                self.n_refusals += 1
                return
            self.queue.popleft()
            self._held.add(begun.session.id, begun.request.marks)
            self.n_running += 1
            self.busy_seconds += begun.last - now
            yield begun

    def finish(self, session: Session, now: float) -> None:
        """Its cells stay until their memory is wanted."""
        session.state, session.last_used = "idle", now
        self.sessions[session.id] = self.sessions.pop(session.id)
        self.n_running -= 1

    def marks(self) -> list[int]:
        """For the router's report."""
        self._held.keep(self.sessions.keys())
        return self._held.report()

    def _begin(self, request: Request, now: float) -> Started | None:
        n_cells = _n_cells(request)
        holder, n_cached, goes_on = self._longest(request)
        n_more = n_cells - holder.committed_bytes if holder and goes_on else n_cells
        if not self._make_room(n_more, holder):
            # No room for a copy: what the other holds beyond is given up, where it is not being written.
            if not holder or goes_on or holder.state == "running":
                return None
            goes_on = True
            if not self._make_room(n_cells - holder.committed_bytes, holder):
                return None
        if holder and goes_on:
            number = holder.id
            self._n_used -= self.sessions.pop(number).committed_bytes
        else:
            self._n_sessions += 1
            number = self._n_sessions
        session = Session(number, request.prompt, request.reply, n_cells, "running", now)
        self.sessions[number] = session
        self._n_used += n_cells
        n_cached = min(n_cached, request.n_prompt - 1)  # the last one's logits are wanted
        first = self._prefill_free = max(now, self._prefill_free) + (request.n_prompt - n_cached) / self.machine.prefill
        return Started(request, session, first, first + request.reply[1] / self.machine.decode, n_cached)

    def _longest(self, request: Request) -> tuple[Session | None, int, bool]:
        """Who holds most of a prompt, how many tokens of it, and whether it goes on there rather than with a copy.

        As the product's sessions: one whose last prompt this one begins with is the same conversation.
        """
        best: tuple[int, bool] = (0, False)
        holder = None
        for session in self.sessions.values():
            if session.prompt[0] != request.prompt[0]:
                continue
            n_tokens = n_common(request.prompt, session.prompt)
            goes_on = False
            if n_tokens == session.n_prompt and session.state == "idle":
                goes_on = True
                rest = request.prompt[len(session.prompt) :]
                n_tokens += session.reply[1] if rest[:1] == (session.reply,) else 0
            if (n_tokens, goes_on) >= best:
                best, holder = (n_tokens, goes_on), session
        return holder, *best

    def _make_room(self, n_cells: int, kept: Session | None) -> bool:
        """Drop idle sessions, those first that were used longest ago; none if all of them are not enough."""
        n_wanted = self._n_used + n_cells - self.machine.n_cells
        victims = []
        for session in self.sessions.values():
            if n_wanted <= 0:
                break
            if session.state == "idle" and session is not kept:
                victims.append(session.id)
                n_wanted -= session.committed_bytes
        if n_wanted > 0:
            return False
        for number in victims:
            self._n_used -= self.sessions.pop(number).committed_bytes
        return True


def _n_cells(request: Request) -> int:
    return request.n_prompt + request.reply[1]
