"""What happened to the memory, for whoever watches: the page's marks, ``run -v``, the metrics."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

EventKind = Literal["resize", "release", "preempt", "park", "restore", "refusal"]

_N_KEPT = 4096


@dataclass(frozen=True, slots=True)
class Event:
    """``number`` ascends without gaps; ``t`` is in seconds of the scheduler's clock.

    ``n_cells`` and ``n_bytes`` are what the event was about: the new capacity and committed bytes of a
    resize, what a release gave back, what was asked for in a refusal.
    """

    number: int
    t: float
    kind: EventKind
    session: int | None
    n_cells: int
    n_bytes: int


class EventLog:
    """The latest events, and how many there ever were of each kind."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._events: deque[Event] = deque(maxlen=_N_KEPT)
        self._n_events = 0
        self.counts: Counter[EventKind] = Counter()

    def add(self, kind: EventKind, session: int | None = None, *, n_cells: int = 0, n_bytes: int = 0) -> None:
        """Record an event that happens now."""
        self._n_events += 1
        self.counts[kind] += 1
        self._events.append(Event(self._n_events, self._clock(), kind, session, n_cells, n_bytes))

    def since(self, number: int) -> list[Event]:
        """Events after ``number`` (0: all that are kept), oldest first; callable from any thread."""
        return [event for event in self._events.copy() if event.number > number]
