"""A folder of parked sessions: cells as files. What a file means for a session is the store's to say."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterator
from pathlib import Path

from elastikv.engine.sessions.session import Session
from elastikv.errors import CacheFull, SnapshotError
from elastikv.memory.base import Memory
from elastikv.memory.snapshot import SnapshotHeader, load_sequence, read_header, save_sequence

log = logging.getLogger(__name__)

_SUFFIX = ".safetensors"


class SessionFiles:
    """Writes and reads cells of one model. Files of other models, and broken ones, are named once and left alone."""

    def __init__(self, folder: Path, memory: Memory, fingerprint: str) -> None:
        """Makes the folder, for its owner alone. Raises OSError."""
        self._folder = folder
        self._memory = memory
        self._fingerprint = fingerprint
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for unfinished in folder.glob(f".*{_SUFFIX}.*.tmp"):  # its writer was killed
            with contextlib.suppress(OSError):
                unfinished.unlink()

    def found(self) -> Iterator[tuple[Path, SnapshotHeader]]:
        """Usable files of earlier runs, the oldest first."""
        for path in sorted(self._folder.glob(f"*{_SUFFIX}"), key=_age):
            try:
                header = read_header(path)
            except (SnapshotError, OSError) as error:
                log.warning("a parked session is not used: %s", error)
                continue
            if header.fingerprint == self._fingerprint:
                yield path, header
            else:
                log.warning("a parked session is not used: %s was saved by another model", path)

    def write(self, session: Session) -> Path | None:
        """A file with its cells; None, after one line in the log, if the disk does not take it."""
        path = self._folder / f"{uuid.uuid4().hex}{_SUFFIX}"
        try:
            save_sequence(path, self._memory, session.seq_id, session.token_ids, self._fingerprint, session.n_prompt)
        except OSError as error:
            log.warning("session %d could not be parked in %s: %s", session.id, self._folder, error)
            return None
        return path

    def read(self, session: Session) -> bool:
        """Read a session's cells back into memory; False, after one line in the log, if its file cannot be used.

        Raises CacheFull if there is no room. The file stays in either case.
        """
        assert session.path is not None
        try:
            load_sequence(session.path, self._memory, session.seq_id, self._fingerprint)
        except CacheFull:
            raise
        except (SnapshotError, OSError) as error:
            log.warning("a parked session is computed again: %s", error)
            return False
        return True


def _age(path: Path) -> float:
    """When it was written. What has gone meanwhile, or leads nowhere, is the oldest: ``found`` names it."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
