"""A session: the tokens of one conversation and the sequence of the memory that holds their cells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

SessionState = Literal["running", "waiting", "idle", "parked"]

FIRST_SEQ_ID = 1 << 20
"""Sessions use sequence ids from here on; the ones below are the caller's (``LLM.forward``)."""


@dataclass(slots=True, eq=False)
class Session:
    """``token_ids``: what its cells hold, from position 0; while running also the tokens yet to be computed.

    The memory is the one that knows how many of them are held. n_prompt: length of the last prompt;
    n_generated: tokens generated in all its turns; path: set while parked.
    """

    id: int
    token_ids: list[int] = field(default_factory=list)
    state: SessionState = "waiting"
    last_used: float = 0.0
    n_prompt: int = 0
    n_generated: int = 0
    has_spare: bool = True
    path: Path | None = None

    @property
    def seq_id(self) -> int:
        return FIRST_SEQ_ID + self.id


class SessionTable:
    """All sessions that hold something: running, idle, or parked on disk."""

    def __init__(self) -> None:
        self._sessions: dict[int, Session] = {}
        self._next_id = 0

    def new(self) -> Session:
        """A session with an id of its own; it is in the table once it is added."""
        session = Session(self._next_id)
        self._next_id += 1
        return session

    def add(self, session: Session) -> None:
        self._sessions[session.id] = session

    def remove(self, session: Session) -> None:
        self._sessions.pop(session.id, None)

    def get(self, session_id: int) -> Session | None:
        return self._sessions.get(session_id)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def idle(self) -> list[Session]:
        """Finished sessions whose cells are still held, the longest unused first."""
        return self._in_state("idle")

    def parked(self) -> list[Session]:
        return self._in_state("parked")

    def running(self) -> list[Session]:
        return self._in_state("running")

    def _in_state(self, state: SessionState) -> list[Session]:
        found = [session for session in self._sessions.values() if session.state == state]
        return sorted(found, key=lambda session: (session.last_used, session.id))
