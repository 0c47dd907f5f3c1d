"""Which replica a request goes to: where its cells are, unless others have much less to do."""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from elastikv.integrations.ray.prefixes import Marks

Name = TypeVar("Name")


@dataclass(frozen=True, slots=True)
class Load:
    """What a replica has to do.

    n_requests: that run or wait; n_parallel: that it computes at once; used: share of its memory in use, 0 to 1.
    """

    n_requests: int
    n_parallel: int = 1
    used: float = 0.0

    @property
    def pressure(self) -> float:
        """0: idle and empty. 1: all places or all memory taken, 2: both; more requests, more of it."""
        return self.n_requests / self.n_parallel + self.used


class Routes(Generic[Name]):
    """What one router knows of its replicas, by name, and whom it chooses.

    It knows what replicas reported, and what it has sent them itself in the last ``sent_seconds``, in which a report
    may not have come. A replica takes a request for the sake of what it holds, while

    - it computes fewer requests than it can at once, or has at most ``imbalance`` times the mean of them (consistent
      hashing with bounded loads), and
    - it holds half of the text, or its memory has room: at most ``crowd`` above the mean, and never above ``full``.
    """

    def __init__(
        self,
        *,
        imbalance: float = 1.5,
        crowd: float = 0.25,
        full: float = 0.9,
        sent_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._imbalance, self._crowd, self._full = imbalance, crowd, full
        self._sent_seconds = sent_seconds
        self._clock = clock
        self._holders: dict[int, Counter[Name]] = {}  # how often a mark was reported by or sent to a replica
        self._reported: dict[Name, frozenset[int]] = {}
        self._sent: deque[tuple[float, Name, Collection[int]]] = deque()

    def report(self, name: Name, marks: Collection[int]) -> None:
        """A replica holds these marks now, and no others."""
        before, now = self._reported.get(name, frozenset()), frozenset(marks)
        self._add(name, now - before)
        self._remove(name, before - now)
        self._reported[name] = now

    def sent(self, name: Name, marks: Collection[int]) -> None:
        """A request with these marks went to a replica, which will hold them."""
        self._sent.append((self._clock() + self._sent_seconds, name, marks))
        self._add(name, marks)

    def keep(self, names: Collection[Name]) -> None:
        """Forget all replicas but these."""
        for gone in [name for name in self._reported if name not in names]:
            self._remove(gone, self._reported.pop(gone))

    def choose(
        self, marks: Marks, loads: Mapping[Name, Load], session: int | None = None, ring: Sequence[Name] = ()
    ) -> list[Name]:
        """Who is to compute a request, and after it those who may if it cannot: at most three.

        First who holds the session that the client named (``session``, its mark), next who holds most of the text, next
        whom consistent hashing names (``ring``, the best first), last who has least to do.
        """
        if not loads:
            return []
        while self._sent and self._sent[0][0] <= self._clock():
            _, name, sent = self._sent.popleft()
            self._remove(name, sent)
        calmest = heapq.nsmallest(3, loads, key=lambda name: loads[name].pressure)
        with_place = self._with_place(loads)
        crowded = min(self._full, sum(load.used for load in loads.values()) / len(loads) + self._crowd)
        home = self._holder(marks, with_place, crowded, session)
        if home is None:
            home = next((name for name in ring if name in with_place), calmest[0])
        return [home, *(name for name in calmest if name != home)][:3]

    def _with_place(self, loads: Mapping[Name, Load]) -> Mapping[Name, Load]:
        """Those for which one request more is not out of proportion. Whoever has least is always among them."""
        total = sum(load.n_requests for load in loads.values())
        most = math.ceil(self._imbalance * (total + 1) / len(loads))
        return {name: load for name, load in loads.items() if load.n_requests < max(most, load.n_parallel)}

    def _holder(self, marks: Marks, loads: Mapping[Name, Load], crowded: float, session: int | None) -> Name | None:
        def calmest(mark: int, *, is_most: bool) -> Name | None:
            fit = [
                name
                for name in self._holders.get(mark, ())
                if name in loads and (is_most or loads[name].used <= crowded)
            ]
            return min(fit, key=lambda name: loads[name].pressure, default=None)

        if session is not None and (holder := calmest(session, is_most=True)) is not None:
            return holder
        half = max(marks.values(), default=0) / 2
        for mark, end in reversed(marks.items()):
            if (holder := calmest(mark, is_most=end >= half)) is not None:
                return holder
        return None

    def _add(self, name: Name, marks: Iterable[int]) -> None:
        for mark in marks:
            self._holders.setdefault(mark, Counter())[name] += 1

    def _remove(self, name: Name, marks: Iterable[int]) -> None:
        for mark in marks:
            holders = self._holders[mark]
            holders[name] -= 1
            if not holders[name]:
                del holders[name]
            if not holders:
                del self._holders[mark]
