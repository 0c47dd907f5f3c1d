"""What the scheduler may do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from elastikv.arguments import instance, whole_number
from elastikv.errors import InvalidRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerOptions:
    """How many requests run and wait, and what becomes of idle sessions. Raises InvalidRequest.

    n_parallel: sequences that run at once; more requests wait.
    max_queue: requests that may wait; more are refused (QueueFull). The default holds what batch clients send at
        once: one that waits at the server with a prompt of 1,000 tokens takes about 80 KiB, so that 4096 take 0.3 GiB.
    idle_release_seconds: an idle session gives back spare capacity after this time (None: never).
    idle_drop_seconds: an idle session is parked, or dropped, after this time (None: never).
    park_dir: a folder for the cells of sessions that have to leave memory (None: they are dropped).
    prefix_reuse: requests may start from cells that earlier ones computed.
    max_idle: idle sessions that are kept in memory, and max_parked: on disk; beyond, the oldest goes.
    """

    n_parallel: int = 4
    max_queue: int = 4096
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
