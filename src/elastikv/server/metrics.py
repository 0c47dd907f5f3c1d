"""``GET /metrics``: what Prometheus reads. Bytes and seconds, as its conventions ask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import Scope
from typing_extensions import override

from elastikv.engine.stats import EngineStats
from elastikv.memory.base import MemoryStats
from elastikv.server.description import content
from elastikv.server.llama_metrics import llama_metrics
from elastikv.server.vllm_metrics import vllm_metrics

router = APIRouter()

_REQUEST_SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class RequestMetrics:
    """What the HTTP side measures itself; one registry per app, so that apps do not share numbers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "elastikv_http_requests", "Requests answered", ["route", "status"], registry=self.registry
        )
        self._request_seconds = Histogram(
            "elastikv_http_request_seconds",
            "From a request's arrival to the end of its answer",
            ["route"],
            buckets=_REQUEST_SECONDS,
            registry=self.registry,
        )
        self._first_token = Histogram(
            "elastikv_first_token_seconds",
            "From a generation's submission to its first token",
            buckets=_FIRST_TOKEN_SECONDS,
            registry=self.registry,
        )
        self._next_token = Histogram(
            "elastikv_next_token_seconds",
            "Between two tokens of one generation",
            buckets=_TOKEN_SECONDS,
            registry=self.registry,
        )

    def observe_tokens(self, seconds: float, *, is_first: bool) -> None:
        """Count the seconds before one token of a generation: its first, or a later one."""
        (self._first_token if is_first else self._next_token).observe(seconds)

    def observe_request(self, scope: Scope, status: int, seconds: float) -> None:
        """Count an answered request, by route and status."""
        # Only routes become labels: anything else would let clients make up as many as they like.
        route = getattr(scope.get("route"), "path", "other")
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)


@router.get("/metrics", response_class=Response, responses=content("text/plain"))
async def metrics(request: Request, model: str | None = None) -> Response:
    """Prometheus text; without the engine's part of models that are not loaded.

    Where several are served, what is told of each has the label ``model``; ``?model=`` asks for one, as if it were
    the only one.
    """
    state = request.app.state.server
    text = generate_latest(state.metrics.registry)
    asked = state.models.all if model is None else [state.models.find(model)]
    engines = {each.name: each.engine for each in asked if each.engine is not None}
    stats = {name: await engine.stats() for name, engine in engines.items()}
    if stats:
        registry = CollectorRegistry()
        registry.register(_EngineCollector(stats, with_names=len(asked) > 1))
        text += generate_latest(registry)
    if len(asked) == len(engines) == 1:
        ((name, engine),) = engines.items()
        text += (llama_metrics(stats[name]) + vllm_metrics(stats[name], await engine.sessions())).encode()
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST, "Process-Start-Time-Unix": str(state.started)})


class _EngineCollector(Collector):
    """One look at the engines, as metrics. with_names: each has the label ``model``."""

    def __init__(self, stats: Mapping[str, EngineStats], *, with_names: bool) -> None:
        self._stats = stats
        self._labels = ["model"] if with_names else []

    @override
    def collect(self) -> Iterator[Metric]:
        memory = next(iter(self._stats.values())).memory
        yield from _families(GaugeMetricFamily, {"": _of_the_budget(memory)}, [])
        for kind, numbers_of in ((GaugeMetricFamily, _gauges), (CounterMetricFamily, _counters)):
            yield from _families(kind, {name: numbers_of(each) for name, each in self._stats.items()}, self._labels)


Numbers = dict[str, tuple[float, str]]
"""Values and their help, by the metric's name."""


def _families(
    kind: type[GaugeMetricFamily | CounterMetricFamily], told: Mapping[str, Numbers], labels: Sequence[str]
) -> Iterator[Metric]:
    """One family a metric, with a value of each that tells of it. labels: one, for who tells, or none."""
    for metric, (_, text) in next(iter(told.values())).items():
        family = kind(f"elastikv_{metric}", text, labels=labels)
        for name, numbers in told.items():
            family.add_metric([name] if labels else [], numbers[metric][0])
        yield family


def _of_the_budget(memory: MemoryStats) -> Numbers:
    """What is under one budget, of however many models."""
    numbers: Numbers = {
        "kv_peak_committed_bytes": (memory.peak_committed_bytes, "Most bytes ever backed, transients included"),
        "compute_bytes": (memory.compute_bytes, "Bytes of compute buffers"),
    }
    if memory.budget_bytes is not None:
        numbers["kv_budget_bytes"] = (memory.budget_bytes, "Limit on KV memory and compute buffers")
    return numbers


def _gauges(stats: EngineStats) -> Numbers:
    memory = stats.memory
    return {
        "kv_committed_bytes": (memory.committed_bytes, "Bytes of KV memory that are backed"),
        "kv_reserved_bytes": (memory.reserved_bytes, "Address space that is only promised"),
        "kv_capacity_cells": (memory.capacity_cells, "Cells that are backed"),
        "kv_used_cells": (memory.used_cells, "Cells that hold a token"),
        "sessions_running": (stats.n_running, "Generations that run"),
        "sessions_waiting": (stats.n_waiting, "Generations in the queue"),
        "sessions_idle": (stats.n_idle, "Finished sessions whose memory is kept"),
        "sessions_parked": (stats.n_parked, "Sessions that are on disk"),
    }


def _counters(stats: EngineStats) -> Numbers:
    memory = stats.memory
    return {
        "kv_resizes": (memory.n_resizes, "Changes of a capacity"),
        "kv_resize_seconds": (memory.resize_seconds, "Time spent in them"),
        "kv_refusals": (stats.n_refusals, "Growth that was refused"),
        "preemptions": (stats.n_preemptions, "Running generations set aside for memory"),
        "releases": (stats.n_releases, "Memory given back by idle or preempted sessions"),
        "parks": (stats.n_parks, "Sessions written to disk"),
        "restores": (stats.n_restores, "Sessions read back from disk"),
        "prompt_tokens": (stats.totals.tokens_prompt, "Prompt tokens computed"),
        "cached_prompt_tokens": (stats.totals.tokens_cached, "Prompt tokens that were held already"),
        "generated_tokens": (stats.totals.tokens_generated, "Tokens generated"),
    }
