"""What the scheduler may do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from elastikv.arguments import instance, whole_number
from elastikv.errors import InvalidRequest

_WHOLE_NUMBERS = (
    ("n_parallel", 1),
    ("max_queue", 1),
    ("max_idle", 0),
    ("max_parked", 1),
    ("ngram_size_n", 1),
    ("ngram_size_m", 1),
)

SpeculationKind = Literal["none", "ngram-simple"]


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
    speculation: ``"ngram-simple"`` guesses what follows from the text itself and computes it along with the next token,
        where memory can take a step back; texts stay the same.
    ngram_size_n: tokens that must have stood in the text before; ngram_size_m: tokens guessed at most.
    """

    n_parallel: int = 4
    max_queue: int = 4096
    idle_release_seconds: float | None = None
    idle_drop_seconds: float | None = None
    park_dir: str | Path | None = None
    prefix_reuse: bool = True
    max_idle: int = 16
    max_parked: int = 256
    speculation: SpeculationKind = "none"
    ngram_size_n: int = 3
    ngram_size_m: int = 16

    def __post_init__(self) -> None:
        for name, least in _WHOLE_NUMBERS:
            whole_number(name, getattr(self, name), least)
        if self.speculation not in get_args(SpeculationKind):
            choices = ", ".join(get_args(SpeculationKind))
            raise InvalidRequest(f"speculation (--spec-type) must be one of {choices}; got {self.speculation!r}")
        for name in ("idle_release_seconds", "idle_drop_seconds"):
            seconds = getattr(self, name)
            if seconds is not None and (not isinstance(seconds, (int, float)) or not seconds >= 0):
                raise InvalidRequest(f"{name} must be at least 0, got {seconds!r}; leave it out for never")
        instance("prefix_reuse", self.prefix_reuse, bool, "True or False")
        instance("park_dir", self.park_dir, (str, Path, type(None)), "the path of a folder")
