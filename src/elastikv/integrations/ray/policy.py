"""Ray Serve's side of ``scaling``."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ray.serve.config import AutoscalingContext

from elastikv.integrations.ray.scaling import Need, replicas_wanted

_KINDS = tuple(field.name for field in fields(Need))


class MemoryPolicy:
    """How many replicas the reports of those that run call for; Ray applies bounds and delays."""

    def __init__(self, n_parallel: int, target_used: float) -> None:
        self._n_parallel, self._target_used = n_parallel, target_used

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number wanted, and a state, of which there is none."""
        reports = context.aggregated_metrics or {}
        names = reports.get("used", {})
        needs = [Need(*(reports.get(kind, {}).get(name, 0.0) for kind in _KINDS)) for name in names]
        if not needs:  # they have not reported yet
            return context.target_num_replicas, {}
        wanted = replicas_wanted(needs, n_parallel=self._n_parallel, target=self._target_used)
        return max(1, wanted), {}
