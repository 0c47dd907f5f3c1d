"""Ray and Ray Serve on this machine, with our application; slow to start, so one for a module of tests."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
}


class Cluster:
    """``url`` and an ``http`` client of it; ``run`` puts another application in place of the one that runs."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=120)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def run(self, build: Callable[[], Any]) -> None:
        """Returns when it serves; ``build`` makes the application."""
        from ray import serve

        serve.run(build(), name="elastikv", route_prefix="/")

    def replicas(self) -> dict[str, int]:
        """Replicas that run, by number, and the processes that they are."""
        from ray.util.state import list_actors

        actors = list_actors(filters=[("state", "=", "ALIVE")], detail=True)
        return {a.name: a.pid for a in actors if a.name.startswith("SERVE_REPLICA::elastikv#replica#")}


@contextmanager
def cluster(n_cpus: int = 4) -> Iterator[Cluster]:
    import ray
    from ray import serve

    os.environ.update(ENVIRONMENT)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    try:
        ray.init(num_cpus=n_cpus, include_dashboard=False, object_store_memory=80 << 20, log_to_driver=False)
        serve.start(http_options={"port": port})
        yield Cluster(f"http://127.0.0.1:{port}")
    finally:
        serve.shutdown()
        ray.shutdown()


@contextmanager
def serving(**arguments: Any) -> Iterator[Cluster]:
    """The demo model, or another, on replicas that need little of a processor each."""
    from elastikv.integrations.ray import app

    with cluster() as running:
        running.run(lambda: app({"ctx_size": 4096, "num_cpus": 0.1, **arguments}))
        yield running
