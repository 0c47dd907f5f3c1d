"""Sessions on disk: written when they leave memory, read when a prompt begins with them, also after a restart."""

from __future__ import annotations

import contextlib
import logging
import uuid
from pathlib import Path

from elastikv.engine.sessions import Session, SessionTable
from elastikv.errors import CacheFull, SnapshotError
from elastikv.memory.base import Memory
from elastikv.memory.snapshot import load_sequence, read_header, save_sequence

log = logging.getLogger(__name__)

_SUFFIX = ".safetensors"


class Parking:
    """A folder of parked sessions. Files of other models, and broken ones, are named once and left alone."""

    def __init__(
        self, folder: Path, memory: Memory, sessions: SessionTable, fingerprint: str, *, n_max: int, now: float
    ) -> None:
        self._folder = folder
        self._memory = memory
        self._sessions = sessions
        self._fingerprint = fingerprint
        self._n_max = n_max
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for unfinished in folder.glob(f".*{_SUFFIX}.*.tmp"):  # its writer was killed
            with contextlib.suppress(OSError):
                unfinished.unlink()
        for path in sorted(folder.glob(f"*{_SUFFIX}"), key=_age):
            self._find(path, now)

    def write(self, session: Session) -> Path | None:
        """A file with its cells; None, after one line in the log, if the disk does not take it."""
        path = self._folder / f"{uuid.uuid4().hex}{_SUFFIX}"
        try:
            save_sequence(path, self._memory, session.seq_id, session.token_ids, self._fingerprint, session.n_prompt)
        except OSError as error:
            log.warning("session %d could not be parked in %s: %s", session.id, self._folder, error)
            return None
        return path

    def park(self, session: Session, path: Path) -> None:
        """It is in the file now, and no longer in memory. The oldest go when there are too many."""
        session.state, session.path = "parked", path
        for oldest in self._sessions.parked()[: -self._n_max]:
            self.forget(oldest)

    def restore(self, session: Session) -> bool:
        """Read its cells back; False, after one line in the log, if its file cannot be used.

        Raises CacheFull if there is no room, and changes nothing then.
        """
        assert session.path is not None
        try:
            load_sequence(session.path, self._memory, session.seq_id, self._fingerprint)
        except CacheFull:
            raise
        except (SnapshotError, OSError) as error:
            log.warning("a parked session is computed again: %s", error)
            self._sessions.remove(session)
            return False
        path = session.path
        session.state, session.path = "idle", None
        path.unlink(missing_ok=True)
        return True

    def forget(self, session: Session) -> None:
        """Remove the session and its file."""
        if session.path is not None:
            session.path.unlink(missing_ok=True)
        self._memory.seq_rm(session.seq_id)  # if its restoring was interrupted
        self._sessions.remove(session)

    def _find(self, path: Path, now: float) -> None:
        """Take over a file of an earlier run."""
        try:
            header = read_header(path)
        except (SnapshotError, OSError) as error:
            log.warning("a parked session is not used: %s", error)
            return
        if header.fingerprint != self._fingerprint:
            log.warning("a parked session is not used: %s was saved by another model", path)
            return
        session = self._sessions.new()
        session.state, session.path, session.token_ids = "parked", path, list(header.token_ids)
        session.n_prompt, session.last_used = header.n_prompt, now
        self._sessions.add(session)


def _age(path: Path) -> float:
    """When it was written. What has gone meanwhile, or leads nowhere, is the oldest: ``_find`` names it."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
