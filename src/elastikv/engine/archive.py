"""Sessions that the user saves to files, brings back, or erases by their number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from elastikv.engine.events import EventLog
from elastikv.engine.room import Room
from elastikv.engine.sessions import Session, SessionTable
from elastikv.errors import InvalidRequest
from elastikv.memory.base import Memory
from elastikv.memory.snapshot import load_sequence, save_sequence


class Archive:
    """Save, restore and erase, for sessions that hold cells."""

    def __init__(
        self,
        memory: Memory,
        sessions: SessionTable,
        room: Room,
        events: EventLog,
        fingerprint: str,
        clock: Callable[[], float],
    ) -> None:
        self._memory = memory
        self._sessions = sessions
        self._room = room
        self._events = events
        self._fingerprint = fingerprint
        self._clock = clock

    def find(self, session_id: int) -> Session:
        """Raises InvalidRequest if there is no such session, or nothing in it yet."""
        session = self._sessions.get(session_id)
        if session is None:
            raise InvalidRequest(f"there is no session {session_id} that holds cells")
        return session

    def save(self, session_id: int, path: str | Path) -> int:
        """Write a session's cells to a file of its own; returns how many tokens it holds. Raises OSError."""
        session = self.find(session_id)
        if session.state == "parked":
            raise InvalidRequest(f"session {session_id} is parked; it is in a file already ({session.path})")
        n_held = self._memory.seq_pos_max(session.seq_id) + 1
        token_ids, n_prompt = session.token_ids[:n_held], min(session.n_prompt, n_held)
        save_sequence(Path(path), self._memory, session.seq_id, token_ids, self._fingerprint, n_prompt)
        return n_held

    def restore(self, path: str | Path) -> int:
        """A new idle session from a file; returns its number. Raises SnapshotError, OSError, CacheFull."""
        session = self._sessions.new()
        header = self._room.make_room_for(
            lambda: load_sequence(Path(path), self._memory, session.seq_id, self._fingerprint)
        )
        session.token_ids, session.n_prompt = header.token_ids, header.n_prompt
        session.state, session.last_used = "idle", self._clock()
        self._sessions.add(session)
        self._events.add("restore", session.id, n_cells=len(session.token_ids))
        return session.id

    def erase(self, session_id: int) -> None:
        """Forget an idle or parked session."""
        session = self.find(session_id)
        if session.state == "running":
            raise InvalidRequest(f"session {session_id} is running; end its request first")
        self._room.drop(session)
