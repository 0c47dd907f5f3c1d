"""Where a request starts: on cells that are there already, or on none."""

from __future__ import annotations

from elastikv.engine.events import EventLog
from elastikv.engine.parking import Parking
from elastikv.engine.prefix import WORTH_SHARING, Reuse, best_reuse, common_prefix
from elastikv.engine.requests import Request
from elastikv.engine.room import Room
from elastikv.engine.sessions import Session, SessionTable
from elastikv.errors import CacheFull
from elastikv.memory.base import Memory


class Placing:
    """Gives a request the session that it runs on.

    ``cuts_anywhere``: whether the model's sequences can be cut at every position; if not, prompts are
    remembered at checkpoints.
    """

    def __init__(
        self,
        memory: Memory,
        sessions: SessionTable,
        parking: Parking | None,
        room: Room,
        events: EventLog,
        *,
        reuses: bool,
        cuts_anywhere: bool,
    ) -> None:
        self._memory = memory
        self._sessions = sessions
        self._parking = parking
        self._room = room
        self._events = events
        self._reuses = reuses
        self._cuts_anywhere = cuts_anywhere

    def place(self, request: Request) -> int:
        """Put the request on a session; returns how many of its tokens need not be computed."""
        session, n_cached = self._session_for(request)
        session.n_prompt, session.has_spare, session.token_ids = request.n_prompt, True, request.token_ids
        request.checkpoint_at = self._checkpoint_for(request, n_cached)
        self._sessions.add(session)
        # One statement: nobody may find a request without its session, or a session without its request.
        request.session, request.is_running, session.state = session, True, "running"
        return n_cached

    def awaits_prompt(self, request: Request, running: list[Request]) -> bool:
        """Whether a running request is still computing a prefix that ``request`` could then copy."""
        if not self._reuses:
            return False
        for other in running:
            n_common = min(common_prefix(other.token_ids, request.token_ids), len(request.token_ids) - 1)
            n_shared = n_common if self._cuts_anywhere else _at_least(n_common, other.checkpoint_at)
            n_held = self._memory.seq_pos_max(other.session.seq_id) + 1
            if n_shared >= WORTH_SHARING and n_held < min(n_shared, other.n_prompt):
                return True
        return False

    def rewind(self, request: Request) -> None:
        """Forget the last token's cell, so that its logits can be had again."""
        seq_id = request.session.seq_id
        point = self._memory.truncation_points(seq_id, len(request.token_ids) - 1)
        self._memory.seq_rm(seq_id, point)

    def _session_for(self, request: Request) -> tuple[Session, int]:
        """The session to run on, and how many of the request's tokens it holds."""
        reuse = None
        if self._reuses:
            reuse = best_reuse(request.token_ids, self._sessions, self._memory, cuts_anywhere=self._cuts_anywhere)
        if reuse and reuse.how == "copy":
            return request.session, self._copy(request, reuse)
        if reuse and (reuse.how == "continue" or self._restore(reuse.session)):
            session = reuse.session
            n_tokens = self._memory.truncation_points(session.seq_id, reuse.n_tokens)
            self._memory.seq_rm(session.seq_id, n_tokens)
            return session, n_tokens
        return request.session, 0

    def _copy(self, request: Request, reuse: Reuse) -> int:
        try:
            copied = self._memory.seq_cp(reuse.session.seq_id, request.session.seq_id, 0, reuse.n_tokens)
        except CacheFull:
            return 0
        return reuse.n_tokens if copied else 0

    def _restore(self, session: Session) -> bool:
        """Read a parked session; idle ones make room for it, running ones do not."""
        parking = self._parking
        assert parking is not None
        try:
            restored = self._room.make_room_for(lambda: parking.restore(session))
        except CacheFull:
            return False
        if restored:
            self._events.add("restore", session.id, n_cells=self._memory.seq_pos_max(session.seq_id) + 1)
        return restored

    def _checkpoint_for(self, request: Request, n_cached: int) -> int | None:
        """Where the prompt's end is remembered: one token early, so that the same prompt can begin there."""
        n_tokens = request.n_prompt - 1
        worth_it = self._reuses and not self._cuts_anywhere and n_tokens >= WORTH_SHARING
        return n_tokens if worth_it and n_tokens > n_cached else None


def _at_least(n_tokens: int, point: int | None) -> int:
    """``point`` if ``n_tokens`` reach it, otherwise nothing."""
    return point if point is not None and n_tokens >= point else 0
