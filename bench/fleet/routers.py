"""Who sends requests where: our router, and three that know less."""

from __future__ import annotations

import hashlib
import random
from bisect import bisect
from collections.abc import Callable, Collection
from typing import Protocol

from bench.fleet.trace import Request
from elastikv.integrations.ray.routing import Load, Routes


class Router(Protocol):
    """What the simulation tells a router, and asks it."""

    def members(self, names: Collection[int]) -> None:
        """Those who take requests, and no others."""

    def counted(self, name: int, n_requests: int) -> None:
        """So many requests run or wait there now: one front sees them come and go."""

    def report(self, name: int, used: float, marks: list[int] | None) -> None:
        """What a replica says of itself every second; no marks: the same as before."""

    def choose(self, request: Request) -> list[int]:
        """The best first; the others in case that it refuses."""


class RoundRobin:
    """One after the other."""

    def __init__(self) -> None:
        self._names: list[int] = []
        self._next = 0

    def members(self, names: Collection[int]) -> None:
        self._names = sorted(names)

    def counted(self, name: int, n_requests: int) -> None:
        pass

    def report(self, name: int, used: float, marks: list[int] | None) -> None:
        pass

    def choose(self, request: Request) -> list[int]:
        self._next += 1
        return [self._names[(self._next + i) % len(self._names)] for i in range(min(3, len(self._names)))]


class TwoChoices(RoundRobin):
    """Of two drawn by chance the one with fewer requests."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._chance = random.Random(seed)
        self._counts: dict[int, int] = {}

    def counted(self, name: int, n_requests: int) -> None:
        self._counts[name] = n_requests

    def choose(self, request: Request) -> list[int]:
        drawn = self._chance.sample(self._names, min(2, len(self._names)))
        return sorted(drawn, key=lambda name: self._counts.get(name, 0))


class ConsistentHash(RoundRobin):
    """A conversation always goes to the same replica, as long as there are the same: clients have to name it."""

    POINTS = 100

    def members(self, names: Collection[int]) -> None:
        self._ring = sorted((_hash(f"{name}/{i}"), name) for name in names for i in range(self.POINTS))

    def choose(self, request: Request) -> list[int]:
        place = bisect(self._ring, (_hash(request.conversation), 0))
        return [self._ring[place % len(self._ring)][1]]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class ByPrefix:
    """The product's ``Routes``, told what Ray's router is told. Clients name no conversations."""

    def __init__(self, n_parallel: int, clock: Callable[[], float]) -> None:
        self._n_parallel = n_parallel
        self._routes: Routes[int] = Routes(clock=clock)
        self._loads: dict[int, Load] = {}

    def members(self, names: Collection[int]) -> None:
        self._loads = {name: self._loads.get(name, Load(0, self._n_parallel)) for name in names}
        self._routes.keep(names)

    def counted(self, name: int, n_requests: int) -> None:
        if name in self._loads:
            self._loads[name] = Load(n_requests, self._n_parallel, self._loads[name].used)

    def report(self, name: int, used: float, marks: list[int] | None) -> None:
        self._loads[name] = Load(self._loads[name].n_requests, self._n_parallel, used)
        if marks is not None:
            self._routes.report(name, marks)

    def choose(self, request: Request) -> list[int]:
        chosen = self._routes.choose(request.marks, self._loads)
        self._routes.sent(chosen[0], request.marks)
        return chosen
