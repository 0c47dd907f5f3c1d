"""Ray Serve itself, with the demo model: what becomes of sessions and requests when replicas die, come and go."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.clusters import Cluster, cluster

pytestmark = pytest.mark.slow
pytest.importorskip("ray.serve", reason='Ray is not installed: pip install -e ".[ray]"')

SMALL = {"ctx_size": 4096, "num_cpus": 0.1, "threads": 1, "temp": 0}


@pytest.fixture(scope="module")
def running() -> Iterator[Cluster]:
    with cluster() as made:
        yield made


def serve(running: Cluster, **arguments: Any) -> None:
    from elastikv.integrations.ray import app

    running.run(app({**SMALL, **arguments}))


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


def words(seed: int, n: int) -> str:
    return " ".join(f"word{seed}of{i * i * (seed + 3) % 97}" for i in range(n))


def tokens(seed: int, n: int) -> list[int]:
    return [(seed * 37 + i * 11) % 3000 for i in range(n)]


def n_cached(running: Cluster, prompt: list[int]) -> int:
    """How many tokens of a prompt were held when it was answered, with one token."""
    reply = running.post("/v1/completions", prompt=prompt, max_tokens=1).json()
    cached: int = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
    return cached


def stream_until(ended: threading.Event, url: str, seed: int, outcomes: Counter[str]) -> None:
    """One streamed request after the other; how each of them ended."""
    with httpx.Client(base_url=url, timeout=60) as client:
        n = 0
        while not ended.is_set():
            n += 1
            body = {"prompt": words(seed * 1000 + n, 20), "max_tokens": 30, "stream": True}
            try:
                with client.stream("POST", "/v1/completions", json=body) as response:
                    lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
                    ok = response.status_code == 200 and lines[-1] == "[DONE]"
                    outcomes["ok" if ok else f"told: {json.loads(lines[-1])['error']['message']}"] += 1
            except httpx.TimeoutException:
                outcomes["hung"] += 1
            except httpx.TransportError:
                outcomes["silent"] += 1


def test_a_killed_replica_loses_no_parked_session_and_hangs_nobody(running: Cluster, tmp_path: Path) -> None:
    serve(running, min_replicas=2, max_replicas=2, kv_park=str(tmp_path), kv_idle_drop=0.5)
    talks = [tokens(i, 100) for i in range(6)]
    for talk in talks:
        n_cached(running, talk)
    until(lambda: len(list(tmp_path.glob("*.safetensors"))) == 6, 30, "sessions are not parked")

    ended, outcomes = threading.Event(), Counter[str]()
    clients = [threading.Thread(target=stream_until, args=(ended, running.url, seed, outcomes)) for seed in range(1, 5)]
    for client in clients:
        client.start()
    until(lambda: outcomes["ok"] >= 4, 60, "no load")
    before = running.replicas()
    assert len(before) == 2
    os.kill(min(before), signal.SIGKILL)
    held = [n_cached(running, [*talk, *range(10)]) for talk in talks]
    ended.set()
    for client in clients:
        client.join(timeout=90)
        assert not client.is_alive(), "a client hangs"

    assert held == [100] * 6
    assert outcomes["hung"] == outcomes["silent"] == 0, outcomes
    told = {outcome: n for outcome, n in outcomes.items() if outcome != "ok"}
    assert all("lost" in outcome for outcome in told), told
    assert sum(told.values()) <= len(clients)
    until(lambda: len(running.replicas()) == 2 and running.replicas() != before, 120, "it is not replaced")


def test_memory_that_fills_brings_replicas_and_memory_that_empties_takes_them(running: Cluster) -> None:
    """One request at a time: there is nothing for a second processor to do."""
    serve(
        running,
        min_replicas=1,
        max_replicas=4,
        kv_budget="40MiB",
        working_set_seconds=15,
        upscale_delay=0,
        downscale_delay=2,
    )
    talks = [tokens(i, 900) for i in range(16)]
    ended = threading.Event()

    def talk() -> None:
        while not ended.is_set():
            for prompt in talks:
                n_cached(running, prompt)

    client = threading.Thread(target=talk)
    client.start()
    try:
        until(lambda: running.n_replicas() == 4, 240, "there are not enough replicas")
    finally:
        ended.set()
        client.join()
    until(lambda: running.n_replicas() == 1, 180, "there are too many replicas")
