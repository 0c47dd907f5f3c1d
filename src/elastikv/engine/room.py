"""What is given up when growth is refused, and how sessions leave memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from elastikv.engine.events import EventLog
from elastikv.engine.parking import Parking
from elastikv.engine.policy import SchedulerOptions
from elastikv.engine.sessions import Session, SessionTable
from elastikv.errors import CacheFull
from elastikv.memory.base import Memory

T = TypeVar("T")

NONE_LEFT = object()


class Room:
    """Gives memory back: spare capacity, idle sessions, and a running one if the scheduler says so."""

    def __init__(self, memory: Memory, sessions: SessionTable, parking: Parking | None, events: EventLog) -> None:
        self._memory = memory
        self._sessions = sessions
        self._parking = parking
        self._events = events

    def concessions(self) -> Iterator[None]:
        """One step after the other that gives something back and costs no request anything."""
        if self._memory.shrink_to_fit():
            yield
        while idle := self._sessions.idle():
            self.release(idle[0])
            yield

    def make_room_for(self, work: Callable[[], T]) -> T:
        """Do ``work``; as long as it is refused, let idle sessions go and try again. Raises the last CacheFull."""
        concessions = self.concessions()
        while True:
            try:
                return work()
            except CacheFull as refusal:
                if refusal.resource == "n_ctx" or next(concessions, NONE_LEFT) is NONE_LEFT:
                    raise

    def tend(self, options: SchedulerOptions, now: float) -> None:
        """Give back what idle sessions have held for too long, and those that are too many."""
        idle = self._sessions.idle()
        for session in idle[: max(len(idle) - options.max_idle, 0)]:
            self.release(session)
        for session in self._sessions.idle():
            seconds = now - session.last_used
            if options.idle_drop_seconds is not None and seconds >= options.idle_drop_seconds:
                self.release(session)
            elif session.has_spare and (
                options.idle_release_seconds is not None and seconds >= options.idle_release_seconds
            ):
                self._memory.shrink_to_fit(session.seq_id)
                session.has_spare = False

    def seconds_until_due(self, options: SchedulerOptions, now: float) -> float | None:
        """When ``tend`` has something to do; None if time alone brings nothing."""
        due = []
        for session in self._sessions.idle():
            if options.idle_drop_seconds is not None:
                due.append(session.last_used + options.idle_drop_seconds - now)
            if options.idle_release_seconds is not None and session.has_spare:
                due.append(session.last_used + options.idle_release_seconds - now)
        return max(min(due), 0.0) if due else None

    def release(self, session: Session) -> None:
        """The session's cells leave memory, to disk if there is a place."""
        n_cells, n_bytes = self._n_held(session), self._committed_bytes(session)
        path = self._parking.write(session) if self._parking and n_cells else None
        self._memory.seq_rm(session.seq_id)
        if self._parking and path:
            self._parking.park(session, path)
        else:
            self._sessions.remove(session)
        self._events.add("park" if path else "release", session.id, n_cells=n_cells, n_bytes=n_bytes)

    def drop(self, session: Session) -> None:
        """The session is forgotten, in memory or on disk."""
        if session.state == "parked" and self._parking is not None:
            self._parking.forget(session)
            return
        n_cells, n_bytes = self._n_held(session), self._committed_bytes(session)
        self._memory.seq_rm(session.seq_id)
        self._sessions.remove(session)
        if n_cells:
            self._events.add("release", session.id, n_cells=n_cells, n_bytes=n_bytes)

    def idle_bytes(self) -> int:
        """What releasing every idle session would give back."""
        idle = {session.seq_id for session in self._sessions.idle()}
        return sum(sequence.committed_bytes for sequence in self._memory.stats().sequences if sequence.seq_id in idle)

    def _n_held(self, session: Session) -> int:
        return self._memory.seq_pos_max(session.seq_id) + 1

    def _committed_bytes(self, session: Session) -> int:
        sequences = self._memory.stats().sequences
        return next((s.committed_bytes for s in sequences if s.seq_id == session.seq_id), 0)
