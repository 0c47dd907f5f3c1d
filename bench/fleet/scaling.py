"""When replicas come and go: our policy, with the bounds and delays that Ray Serve puts around it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from elastikv.integrations.ray.scaling import Need, replicas_wanted


@dataclass(frozen=True, slots=True)
class Bounds:
    """Seconds: between two decisions, for which they have to agree, and that a replica takes to start."""

    least: int = 1
    most: int = 1
    period: float = 1.0
    up_delay: float = 10.0
    down_delay: float = 120.0
    start: float = 20.0


class Scaler:
    """The number of replicas that there are to be."""

    def __init__(self, bounds: Bounds, n_parallel: int) -> None:
        self.target = bounds.least
        self._bounds, self._n_parallel = bounds, n_parallel
        self._for_seconds = 0.0  # below 0: for so long fewer were wanted

    def decide(self, needs: Collection[Need]) -> int:
        """Told what the replicas that run need, every ``period``."""
        bounds = self._bounds
        wanted = replicas_wanted(needs, n_parallel=self._n_parallel)
        wanted = min(max(wanted, bounds.least), bounds.most)
        if wanted > self.target:
            self._for_seconds = max(self._for_seconds, 0) + bounds.period
        elif wanted < self.target:
            self._for_seconds = min(self._for_seconds, 0) - bounds.period
        else:
            self._for_seconds = 0.0
        if self._for_seconds > bounds.up_delay or -self._for_seconds > bounds.down_delay:
            self.target, self._for_seconds = wanted, 0.0
        return self.target
