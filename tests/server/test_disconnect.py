from __future__ import annotations

import socket

import pytest
from fake_engine import FakeAsyncLLM
from running import RunningServer, raw_post, running, wait_for


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_goes_away_ends_its_generations(stream: bool, n: int) -> None:
    engine = FakeAsyncLLM(step=0.02)
    with running(engine) as server:
        start(server, {"prompt": "x" * 200, "stream": stream, "n": n}).close()
        wait_for(lambda: len(engine.aborted) == n)
        n_generated = engine.n_generated
        assert n_generated < n * 200
        assert server.post("/v1/completions", prompt="ab").json()["choices"][0]["text"] == "ab"
        assert engine.n_generated == n_generated + 2


@pytest.mark.parametrize("stream", [False, True])
def test_one_that_leaves_the_queue_never_runs(stream: bool) -> None:
    engine = FakeAsyncLLM(n_parallel=1, step=0.02)
    with running(engine) as server:
        first = start(server, {"prompt": "x" * 100, "stream": True})
        wait_for(lambda: engine.n_generated > 0)
        start(server, {"prompt": "y" * 100, "stream": stream}).close()
        wait_for(lambda: len(engine.requests) == 2)
        first.close()
        wait_for(lambda: len(engine.aborted) == 1)
        assert server.post("/v1/completions", prompt="ab").status_code == 200
        assert engine.aborted == ["x" * 100]
        assert engine.finished == ["ab"]


def start(server: RunningServer, body: dict) -> socket.socket:
    """Send a request and read nothing."""
    connection = server.connect()
    connection.sendall(raw_post("/v1/completions", body))
    return connection
