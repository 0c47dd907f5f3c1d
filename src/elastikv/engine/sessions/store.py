"""The one place where a session's state changes. See ``session.py`` for the states.

Any line may be interrupted (Ctrl-C): what two objects must agree about is assigned in one statement, which no signal
comes between, and every operation may be done again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from elastikv.engine.events import EventLog
from elastikv.engine.options import SchedulerOptions
from elastikv.engine.sessions.files import SessionFiles
from elastikv.engine.sessions.prefix import WORTH_SHARING, Reuse, best_reuse, common_prefix
from elastikv.engine.sessions.session import Owner, Session, SessionState
from elastikv.engine.sharing import SharedBudget
from elastikv.errors import CacheFull, InvalidRequest
from elastikv.memory import Cost
from elastikv.memory.base import Memory
from elastikv.memory.snapshot import load_sequence, save_sequence


class SessionStore:
    """All sessions that hold something: running, idle, or parked on disk.

    shared: the budget of ``memory``, which other models' sessions may be under as well. fingerprint: of the model, for
    files; clock: seconds. Raises OSError where ``options.park_dir`` cannot be made.
    """

    def __init__(
        self,
        memory: Memory,
        cost: Cost,
        shared: SharedBudget,
        options: SchedulerOptions,
        events: EventLog,
        fingerprint: str,
        clock: Callable[[], float],
    ) -> None:
        self._memory = memory
        self._cost = cost
        self._shared = shared
        self._options = options
        self._events = events
        self._fingerprint = fingerprint
        self._clock = clock
        self._sessions: dict[int, Session] = {}
        self._next_id = 0
        self._files: SessionFiles | None = None
        if options.park_dir is not None:
            self._files = SessionFiles(Path(options.park_dir), memory, fingerprint)
            self._look_at(self._files)

    # Which there are

    def new(self) -> Session:
        """A session with an id of its own that holds nothing and waits; ``acquire`` or ``load`` puts it among these."""
        session = Session(self._next_id)
        self._next_id += 1
        return session

    def find(self, session_id: int) -> Session:
        """A session by its id. Raises InvalidRequest if there is none, or nothing in it yet."""
        session = self._sessions.get(session_id)
        if session is None:
            raise InvalidRequest(f"there is no session {session_id} that holds cells")
        return session

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def idle(self) -> list[Session]:
        """Sessions whose request has ended and whose cells are still held, the longest unused first."""
        return self._in_state("idle")

    def parked(self) -> list[Session]:
        """Sessions whose cells are on disk, the longest unused first."""
        return self._in_state("parked")

    @property
    def is_running(self) -> bool:
        """Whether any request runs."""
        return any(session.state == "running" for session in self._sessions.values())

    def n_held(self, session: Session) -> int:
        """How many of its tokens have cells."""
        return self._memory.n_tokens(session.seq_id)

    def idle_bytes(self) -> int:
        """What parking every idle session would give back."""
        idle = {session.seq_id for session in self.idle()}
        return sum(sequence.committed_bytes for sequence in self._memory.stats().sequences if sequence.seq_id in idle)

    def promised_bytes(self) -> int:
        """What the tokens of running sessions need that have no cells yet; what they generate is not foreseen."""
        least, total = self._cost.least_bytes, 0
        for session in self._in_state("running"):
            n_held = self.n_held(session)
            total += least(len(session.token_ids)) - (least(n_held) if n_held else 0)
        return total

    # From a request's start to its end

    def acquire(self, owner: Owner) -> int:
        """Put a request on a session: one that holds the beginning of its tokens, or the request's own, empty one.

        Returns how many of its tokens need not be computed.
        """
        session, n_cached = self._session_for(owner)
        session.n_prompt, session.has_spare, session.token_ids = owner.n_prompt, True, owner.token_ids
        owner.checkpoint_at = self._checkpoint_for(owner, n_cached)
        self._sessions[session.id] = session
        # Nobody may find a request without its session, or a session without its request.
        owner.session, session.state = session, "running"
        return n_cached

    def awaits_prompt(self, owner: Owner, running: Iterable[Owner]) -> bool:
        """Whether a running request is still computing a prefix that ``owner`` could then copy."""
        if not self._options.prefix_reuse or not owner.caches_prompt:
            return False
        for other in running:
            n_common = min(common_prefix(other.token_ids, owner.token_ids), len(owner.token_ids) - 1)
            n_shared = n_common if self._memory.cuts_anywhere else _at_least(n_common, other.checkpoint_at)
            if n_shared >= WORTH_SHARING and self.n_held(other.session) < min(n_shared, other.n_prompt):
                return True
        return False

    def rewind(self, owner: Owner) -> None:
        """Remove the last token's cell, so that its logits can be computed again."""
        self._truncate(owner.session, len(owner.token_ids) - 1)

    def release(self, owner: Owner) -> None:
        """The request has ended: its session is idle, and its cells stay until their memory is wanted."""
        session = owner.session
        if session.state == "running":
            session.token_ids, session.last_used = owner.token_ids[: self.n_held(session)], self._clock()
            stays = self._options.prefix_reuse and bool(session.token_ids)
            if stays:
                self._memory.checkpoint(session.seq_id)
            session.n_generated, session.state = session.n_generated + owner.n_generated, "idle"
            if not stays:
                self.drop(session)
        elif session.state == "waiting":  # it may have been interrupted while it was acquired
            self.drop(session)

    def preempt(self, owner: Owner) -> None:
        """The request has to wait on a new, empty session; the cells that it had are parked, or given up."""
        session = owner.session
        session.token_ids, session.last_used = owner.token_ids[: self.n_held(session)], self._clock()
        owner.session, session.state = self.new(), "idle"
        self._events.add("preempt", session.id, n_cells=len(session.token_ids))
        self.park(session)

    # Out of memory and back

    def park(self, session: Session) -> None:
        """The cells of an idle session leave memory: to disk if there is a place, else for good."""
        n_cells, n_bytes = self.n_held(session), self._committed_bytes(session)
        path = self._files.write(session) if self._files and n_cells else None
        self._memory.seq_rm(session.seq_id)
        if path:
            session.state, session.path = "parked", path
            for oldest in self.parked()[: -self._options.max_parked]:
                self.drop(oldest)
        else:
            self._sessions.pop(session.id, None)
        self._events.add("park" if path else "release", session.id, n_cells=n_cells, n_bytes=n_bytes)

    def restore(self, session: Session) -> bool:
        """A parked session is idle again. Idle ones make room for it, running ones do not.

        False where its file cannot be used (it is forgotten then) or there is no room.
        """
        files, path = self._files, session.path
        assert files is not None
        assert path is not None
        try:
            restored = self._shared.make_room_for(lambda: files.read(session), self)
        except CacheFull:
            return False
        if not restored:
            self._sessions.pop(session.id, None)
            return False
        session.state, session.path = "idle", None
        files.remove(path)
        self._events.add("restore", session.id, n_cells=self.n_held(session))
        return True

    def drop(self, session: Session) -> None:
        """The session is forgotten, in memory and on disk."""
        n_cells, n_bytes = self.n_held(session), self._committed_bytes(session)
        is_parked = session.state == "parked"
        if self._files is not None and session.path is not None:
            self._files.remove(session.path)
        self._memory.seq_rm(session.seq_id)  # a parked one has cells if its restoring was interrupted
        self._sessions.pop(session.id, None)
        if n_cells and not is_parked:
            self._events.add("release", session.id, n_cells=n_cells, n_bytes=n_bytes)

    def settle(self) -> None:
        """A decode call that was interrupted is as if it had not begun."""
        self._memory.rollback()

    def shrink(self) -> int:
        """Give back capacity that no token uses; returns the bytes."""
        return self._memory.shrink_to_fit()

    def tend(self) -> None:
        """Give back what idle sessions have held for too long, and those that are too many."""
        options, now, idle = self._options, self._clock(), self.idle()
        for session in idle[: max(len(idle) - options.max_idle, 0)]:
            self.park(session)
        for session in self.idle():
            seconds = now - session.last_used
            if options.idle_drop_seconds is not None and seconds >= options.idle_drop_seconds:
                self.park(session)
            elif session.has_spare and (
                options.idle_release_seconds is not None and seconds >= options.idle_release_seconds
            ):
                self._memory.shrink_to_fit(session.seq_id)
                session.has_spare = False

    def seconds_until_due(self) -> float | None:
        """When ``tend`` has something to do; None if time alone brings nothing."""
        options, now, due = self._options, self._clock(), []
        for session in self.idle():
            if options.idle_drop_seconds is not None:
                due.append(session.last_used + options.idle_drop_seconds - now)
            if options.idle_release_seconds is not None and session.has_spare:
                due.append(session.last_used + options.idle_release_seconds - now)
        return max(min(due), 0.0) if due else None

    # What users ask for by a session's number

    def save(self, session_id: int, path: str | Path) -> int:
        """Write a session's cells to a file of its own; returns how many tokens it holds. Raises OSError."""
        session = self.find(session_id)
        if session.state == "parked":
            raise InvalidRequest(f"session {session_id} is parked; it is in a file already ({session.path})")
        n_held = self.n_held(session)
        token_ids, n_prompt = session.token_ids[:n_held], min(session.n_prompt, n_held)
        save_sequence(Path(path), self._memory, session.seq_id, token_ids, self._fingerprint, n_prompt)
        return n_held

    def load(self, path: str | Path) -> int:
        """A new idle session from a file of ``save``; its number. Raises SnapshotError, OSError, CacheFull."""
        session = self.new()
        header = self._shared.make_room_for(
            lambda: load_sequence(Path(path), self._memory, session.seq_id, self._fingerprint), self
        )
        session.token_ids, session.n_prompt, session.last_used = header.token_ids, header.n_prompt, self._clock()
        self._sessions[session.id], session.state = session, "idle"
        self._events.add("restore", session.id, n_cells=len(session.token_ids))
        return session.id

    def erase(self, session_id: int) -> None:
        """Close an idle or parked session and give its memory back. Raises InvalidRequest for a running one."""
        session = self.find(session_id)
        if session.state == "running":
            raise InvalidRequest(f"session {session_id} is running; end its request first")
        self.drop(session)

    # The parts

    def _in_state(self, state: SessionState) -> list[Session]:
        found = [session for session in self._sessions.values() if session.state == state]
        return sorted(found, key=lambda session: (session.last_used, session.id))

    def _look_at(self, files: SessionFiles) -> None:
        """Take over what an earlier run or another server has parked, and forget what another one has taken."""
        there = files.paths()
        for session in self.parked():
            if session.path not in there:
                self.drop(session)
        known = {session.path for session in self.parked()}
        for path, header in files.headers(path for path in there if path not in known):
            session = self.new()
            session.token_ids, session.n_prompt = list(header.token_ids), header.n_prompt
            session.state, session.path, session.last_used = "parked", path, self._clock()
            self._sessions[session.id] = session

    def _session_for(self, owner: Owner) -> tuple[Session, int]:
        """The session to run on, and how many of the request's tokens it holds."""
        # A request that was preempted goes on where it was parked, whatever it wants of others' cells.
        may_reuse = self._options.prefix_reuse and (owner.caches_prompt or owner.n_generated)
        if may_reuse and self._files is not None:
            self._look_at(self._files)
        reuse = best_reuse(owner.token_ids, self, self._memory) if may_reuse else None
        if reuse and reuse.how == "copy":
            return owner.session, self._copy(owner, reuse)
        if reuse and (reuse.how == "continue" or self.restore(reuse.session)):
            return reuse.session, self._truncate(reuse.session, reuse.n_tokens)
        return owner.session, 0

    def _copy(self, owner: Owner, reuse: Reuse) -> int:
        try:
            copied = self._memory.seq_cp(reuse.session.seq_id, owner.session.seq_id, 0, reuse.n_tokens)
        except CacheFull:
            return 0
        return reuse.n_tokens if copied else 0

    def _truncate(self, session: Session, n_tokens: int) -> int:
        """Truncate to ``n_tokens``, or to the last point before that memory can go back to; returns what is left."""
        n_left = self._memory.truncation_point(session.seq_id, n_tokens)
        self._memory.seq_rm(session.seq_id, n_left)
        return n_left

    def _checkpoint_for(self, owner: Owner, n_cached: int) -> int | None:
        """Where the prompt's end is remembered: one token early, so that the same prompt can begin there."""
        n_tokens = owner.n_prompt - 1
        worth_it = self._options.prefix_reuse and not self._memory.cuts_anywhere and n_tokens >= WORTH_SHARING
        return n_tokens if worth_it and n_tokens > n_cached else None

    def _committed_bytes(self, session: Session) -> int:
        sequences = self._memory.stats().sequences
        return next((s.committed_bytes for s in sequences if s.seq_id == session.seq_id), 0)


def _at_least(n_tokens: int, point: int | None) -> int:
    """``point`` if ``n_tokens`` reach it, otherwise nothing."""
    return point if point is not None and n_tokens >= point else 0
