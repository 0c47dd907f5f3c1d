"""SIGTERM and SIGINT under load, at a real process: everybody gets an answer, and sessions are kept."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import FakeAsyncLLM
from running import wait_for
from serve_process import ServeProcess, serving, start
from support.tiny_models import tiny_model

from elastikv.server import Server, ServerSettings, create_app

ENDLESS = ("-c", "32768", "--ignore-eos")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=32768)


@pytest.fixture
def clients() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def ask(server: ServeProcess, **body: Any) -> tuple[int, list[Any], float]:
    """Status, the events of a stream or the one answer, and when it ended."""
    with httpx.Client(timeout=60) as http:
        response = http.post(f"{server.url}/v1/completions", json={"prompt": "go on", **body})
    if response.headers["content-type"].startswith("text/event-stream"):
        events = [block.removeprefix("data: ") for block in response.text.split("\n\n") if block]
        assert events.pop() == "[DONE]"
        return response.status_code, [json.loads(event) for event in events], time.monotonic()
    return response.status_code, [response.json()], time.monotonic()


def wait_until(server: ServeProcess, **counts: int) -> None:
    wait_for(lambda: server.get("/memory").items() >= counts.items(), seconds=30)


def new_lines(server: ServeProcess) -> list[str]:
    """What it has said since it was ready."""
    ready = next(number for number, line in enumerate(server.lines) if " ready: " in line)
    return server.lines[ready + 1 :]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_everybody_gets_an_answer(
    model: Path, tmp_path: Path, clients: ThreadPoolExecutor, number: signal.Signals
) -> None:
    park = tmp_path / "park"
    with serving(model, *ENDLESS, "--parallel", "2", "--drain", "1", "--kv-park", str(park)) as server:
        running: list[Future[Any]] = [clients.submit(ask, server, stream=stream) for stream in (True, False)]
        wait_until(server, n_running=2)
        waiting = [clients.submit(ask, server, stream=stream) for stream in (True, False)]
        wait_until(server, n_running=2, n_waiting=2)
        server.process.send_signal(number)
        for status, (answer,), _ in (future.result() for future in waiting):
            assert status == 503
            assert answer["error"]["type"] == "unavailable_error"
            assert "shutting down" in answer["error"]["message"]
        refused = max(future.result()[2] for future in waiting)
        for status, events, ended in (future.result() for future in running):
            assert status == 200
            assert ended > refused
            assert "".join(event["choices"][0]["text"] for event in events)
            assert events[-1]["choices"][0]["finish_reason"] == "length"
            assert "shutting down" in events[-1]["warning"]
        assert server.wait() == 0
    (line,) = new_lines(server)
    assert f"elastikv: {number.name}: shutting down" in line
    assert len(list(park.iterdir())) == 2


def test_a_second_signal_ends_at_once(model: Path, clients: ThreadPoolExecutor) -> None:
    with serving(model, *ENDLESS, "--drain", "600") as server:
        cut_off = clients.submit(ask, server, stream=True)
        wait_until(server, n_running=1)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: len(new_lines(server)) == 1)
        assert server.end(signal.SIGINT) == 128 + signal.SIGINT
        with pytest.raises(httpx.TransportError):
            cut_off.result()
    assert len(new_lines(server)) == 1


def test_a_client_that_reads_nothing_holds_nobody_up() -> None:
    engine = FakeAsyncLLM(n_ctx=100_000)
    server = Server(create_app(ServerSettings(drain=0.1), lambda: engine))
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as deaf:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        wait_for(lambda: engine.started)
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(listener.getsockname())
        body = json.dumps({"prompt": "x" * 20_000, "stream": True}).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        deaf.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_for(lambda: engine.n_generated > 1000)
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()


@pytest.mark.slow
def test_it_can_be_ended_while_the_model_loads(tmp_path: Path) -> None:
    model = tiny_model("llama", tmp_path / "model", num_hidden_layers=16)
    server = start("-m", str(model))
    try:
        server.wait_until_listening()
        wait_for(lambda: server.health() == 503)
        assert server.end() == 0
        assert not any("Traceback" in line or "error" in line for line in server.lines)
    finally:
        server.process.kill()
