"""The events: requests come, begin and end, replicas report, start and go."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import cast

from bench.fleet.replica import Machine, Replica, Session
from bench.fleet.routers import Router
from bench.fleet.scaling import Bounds, Scaler
from bench.fleet.trace import Request
from elastikv.engine.stats import SessionInfo
from elastikv.integrations.ray.scaling import Need, working_set_bytes

REPORT_SECONDS = 1.0
WORKING_SET_SECONDS = 60.0


class Clock:
    """The simulation's time, in seconds."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(slots=True)
class Outcome:
    """What a run came to. waits: seconds to each first token; busy_seconds: of slots, by replica; sizes: replicas
    that run, and since when.
    """

    n_prompt: int = 0
    n_cached: int = 0
    n_refused: int = 0
    waits: list[float] = field(default_factory=list)
    busy_seconds: list[float] = field(default_factory=list)
    sizes: list[tuple[float, int]] = field(default_factory=list)

    @property
    def imbalance(self) -> float:
        """The busiest replica's work by the mean."""
        return max(self.busy_seconds) * len(self.busy_seconds) / (sum(self.busy_seconds) or 1)

    def wait(self, share: float) -> float:
        """Seconds in which the first token of this share of requests was there."""
        waits = sorted(self.waits)
        return waits[min(int(share * len(waits)), len(waits) - 1)] if waits else 0.0


class Simulation:
    """One run. ``make_router`` is told the clock."""

    def __init__(self, machine: Machine, bounds: Bounds, make_router: Callable[[Clock], Router]) -> None:
        self._machine, self._bounds = machine, bounds
        self._clock = Clock()
        self._router = make_router(self._clock)
        self._scaler = Scaler(bounds, machine.n_parallel)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self._replicas: dict[int, Replica] = {}  # that take requests
        self._all: list[Replica] = []
        self._changed: set[int] = set()  # since their last reports
        self._in_use: set[int] = set()
        self._n_starting = self._n_open = 0
        self.outcome = Outcome()

    def run(self, requests: Sequence[Request]) -> Outcome:
        """Until the last request has ended, and so many replicas are left as there are to be at least."""
        self._join(self._bounds.least)
        self._n_open = len(requests)
        for request in requests:
            self._at(request.seconds, partial(self._arrive, request))
        self._at(REPORT_SECONDS, self._report)
        self._at(self._bounds.period, self._scale)
        while self._events:
            self._clock.now, _, event = heapq.heappop(self._events)
            event()
        self.outcome.busy_seconds += [replica.busy_seconds for replica in self._all]
        return self.outcome

    @property
    def _goes_on(self) -> bool:
        return bool(self._n_open or self._n_starting) or len(self._replicas) > self._bounds.least

    def _at(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (seconds, next(self._numbers), event))

    def _arrive(self, request: Request) -> None:
        for name in self._router.choose(request):
            if self._replicas[name].offer(request):
                self._advance(self._replicas[name])
                return
        self.outcome.n_refused += 1
        self._n_open -= 1

    def _advance(self, replica: Replica) -> None:
        now, outcome = self._clock.now, self.outcome
        for begun in replica.start(now):
            outcome.n_prompt += begun.request.n_prompt
            outcome.n_cached += begun.n_cached
            outcome.waits.append(begun.first - begun.request.seconds)
            self._at(begun.last, partial(self._finish, replica, begun.session))
        self._changed.add(replica.name)
        self._router.counted(replica.name, replica.n_requests)

    def _finish(self, replica: Replica, session: Session) -> None:
        self._n_open -= 1
        replica.finish(session, self._clock.now)
        self._advance(replica)

    def _report(self) -> None:
        """Those who would say what they said before, and hold nothing new, say nothing."""
        in_use = set()
        for name in sorted((self._changed | self._in_use) & self._replicas.keys()):
            replica = self._replicas[name]
            used = self._used(replica)
            self._router.report(name, used, replica.marks() if name in self._changed else None)
            if used:
                in_use.add(name)
        self._in_use = in_use
        self._changed.clear()
        if self._goes_on:
            self._at(self._clock.now + REPORT_SECONDS, self._report)

    def _used(self, replica: Replica) -> float:
        sessions = cast(Iterable[SessionInfo], replica.sessions.values())
        return working_set_bytes(sessions, self._clock.now, WORKING_SET_SECONDS) / self._machine.n_cells

    def _scale(self) -> None:
        if self._bounds.least == self._bounds.most:
            return
        needs = []
        for replica in self._replicas.values():
            needs.append(Need(self._used(replica), replica.n_running, len(replica.queue), replica.n_refusals))
            replica.n_refusals = 0
        n_more = self._scaler.decide(needs) - len(self._replicas) - self._n_starting
        for _ in range(n_more):
            self._n_starting += 1
            self._at(self._clock.now + self._bounds.start, self._started)
        if n_more < 0:
            self._leave(-n_more)
        if self._goes_on:
            self._at(self._clock.now + self._bounds.period, self._scale)

    def _started(self) -> None:
        self._n_starting -= 1
        self._join(1)

    def _join(self, n: int) -> None:
        for _ in range(n):
            replica = Replica(len(self._all), self._machine)
            self._all.append(replica)
            self._replicas[replica.name] = replica
        self._resized()

    def _leave(self, n: int) -> None:
        """Those with the fewest requests end these and take no more; what they held is lost."""
        for replica in heapq.nsmallest(n, self._replicas.values(), key=lambda replica: replica.n_requests):
            del self._replicas[replica.name]
        self._resized()

    def _resized(self) -> None:
        self._router.members(self._replicas)
        sizes, now = self.outcome.sizes, self._clock.now
        if sizes and sizes[-1][0] == now:
            sizes.pop()
        sizes.append((now, len(self._replicas)))
