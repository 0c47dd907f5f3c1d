"""Ray and Ray Serve on this machine, with our application, for benchmarks and tests. Half a minute to start."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psutil

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
}


NAME = "elastikv"


class Cluster:
    """``url`` and an ``http`` client of it; ``run`` puts another application in place of the one that runs."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=120)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)

    def run(self, application: Any) -> None:
        """Returns when it serves."""
        from ray import serve

        serve.delete(NAME)
        serve.run(application, name=NAME, route_prefix="/")

    def replicas(self) -> set[int]:
        """The processes of the replicas."""
        name = f"ray::ServeReplica:{NAME}:replica"
        children = psutil.Process().children(recursive=True)
        return {child.pid for child in children if child.is_running() and name in " ".join(child.cmdline())}

    def n_replicas(self) -> int:
        """Replicas that serve."""
        from ray import serve

        deployment = serve.status().applications[NAME].deployments["replica"]
        return int(deployment.replica_states.get("RUNNING", 0))


@contextmanager
def cluster(n_cpus: int = 4) -> Iterator[Cluster]:
    """One whose processors are only counted; it ends with the block."""
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
        running.run(app({"ctx_size": 4096, "num_cpus": 0.1, **arguments}))
        yield running
