"""A folder of parked sessions: cells as files. What a file means for a session is the store's to say.

Servers may share one, on several machines too. Who reads a file takes it first, by giving it another name: a rename
succeeds once, so that no two go on with the same cells.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import psutil

from elastikv.engine.sessions.session import Session
from elastikv.errors import CacheFull, SnapshotError
from elastikv.memory.base import Memory
from elastikv.memory.snapshot import SnapshotHeader, load_sequence, read_header, save_sequence

log = logging.getLogger(__name__)

_SUFFIX = ".safetensors"
_GIVEN_UP_SECONDS = 3600.0
"""What a server of another machine began so long ago it has not survived."""


class SessionFiles:
    """Writes and reads cells of one model. Files of other models, and broken ones, are named once and left alone."""

    def __init__(self, folder: Path, memory: Memory, fingerprint: str) -> None:
        """Makes the folder, for its owner alone. Raises OSError."""
        self._folder = folder
        self._memory = memory
        self._fingerprint = fingerprint
        self._useless: set[Path] = set()
        self._in_hand: set[Path] = set()  # taken, or about to be
        self._owner = (platform.node().replace(".", "-"), str(os.getpid()))
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._settle_what_was_begun()

    def paths(self) -> set[Path]:
        """What is there for any server to take, without what was found useless, and what this one has in hand."""
        return {*self._folder.glob(f"*{_SUFFIX}"), *self._in_hand} - self._useless

    def headers(self, paths: Iterable[Path]) -> Iterator[tuple[Path, SnapshotHeader]]:
        """Of those that are usable, the oldest first."""
        for path in sorted(paths, key=_age):
            try:
                header = read_header(path)
            except (SnapshotError, OSError) as error:
                self._set_aside(path, f"a parked session is not used: {error}")
                continue
            if header.fingerprint == self._fingerprint:
                yield path, header
            else:
                self._set_aside(path, f"a parked session is not used: {path} was saved by another model")

    def write(self, session: Session) -> Path | None:
        """A file with its cells; None, after one line in the log, if the disk does not take it."""
        path = self._folder / f"{uuid.uuid4().hex}.{'.'.join(self._owner)}{_SUFFIX}"
        try:
            save_sequence(path, self._memory, session.seq_id, session.token_ids, self._fingerprint, session.n_prompt)
        except OSError as error:
            log.warning("session %d could not be parked in %s: %s", session.id, self._folder, error)
            return None
        return path

    def read(self, session: Session) -> bool:
        """Take a session's file and read its cells into memory; False, after one line in the log, if that cannot be.

        Raises CacheFull if there is no room, and lets go of the file.
        """
        path = session.path
        assert path is not None
        taken = self._taken(path)
        self._in_hand.add(path)
        with contextlib.suppress(FileNotFoundError):  # it has that name already, if this was interrupted
            path.rename(taken)
        try:
            load_sequence(taken, self._memory, session.seq_id, self._fingerprint)
        except CacheFull:
            self._let_go(path)
            raise
        except (SnapshotError, OSError) as error:
            self._let_go(path)
            self._set_aside(path, f"a parked session is computed again: {error}".replace(taken.name, path.name))
            return False
        return True

    def remove(self, path: Path) -> None:
        """Delete a session's file, whether it is in hand or not."""
        path.unlink(missing_ok=True)
        self._taken(path).unlink(missing_ok=True)
        self._in_hand.discard(path)

    def _taken(self, path: Path) -> Path:
        return path.with_name(f".{path.name}.{'.'.join(self._owner)}.taken")

    def _let_go(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._taken(path).rename(path)
        self._in_hand.discard(path)

    def _set_aside(self, path: Path, why: str) -> None:
        log.warning("%s", why)
        self._useless.add(path)

    def _settle_what_was_begun(self) -> None:
        """Files that a server was writing or had in hand when it was killed."""
        for path in self._folder.glob(".*"):
            parts = path.name.split(".")
            with contextlib.suppress(OSError):
                if parts[-1] == "taken" and self._has_ended(parts[-3:-1], path):
                    path.rename(path.with_name(".".join(parts[1:-3])))
                elif parts[-1] == "tmp" and _SUFFIX in path.name and self._has_ended(parts[2:4], path):
                    path.unlink()

    def _has_ended(self, owner: Sequence[str], path: Path) -> bool:
        """Whether the process, named by host and number, that made ``path`` has ended. One without a name has."""
        host, number = owner
        if not number.isdecimal():
            return True
        if host == self._owner[0]:
            return number == self._owner[1] or not psutil.pid_exists(int(number))
        return time.time() - path.stat().st_ctime > _GIVEN_UP_SECONDS


def _age(path: Path) -> float:
    """When it was written. What has gone meanwhile, or leads nowhere, is the oldest: ``headers`` names it."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
