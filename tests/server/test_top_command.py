"""`elastikv top` beside a server that runs, and beside what is none."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from fake_engine import FakeAsyncLLM
from real_engine import serving
from rich.console import Console
from running import RunningServer, running

from elastikv.cli.main import main
from elastikv.cli.top import Server, frame


@pytest.fixture(scope="module")
def real() -> Iterator[RunningServer]:
    with serving() as handle:
        handle.post("/v1/completions", prompt="def add(a, b):", max_tokens=4)
        yield handle


def top(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capfd.readouterr()
    code = main(["top", *arguments])
    return code, *capfd.readouterr()


def test_it_prints_what_the_memory_holds(real: RunningServer, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = top(capfd, real.url.removeprefix("http://"), "--once")
    assert (code, err) == (0, "")
    assert "0 running, 0 waiting, 1 idle" in out
    session = next(line for line in out.splitlines() if "idle" in line and "running" not in line).split()
    told = real.http.get("/memory").json()["sessions"][0]
    assert session[2:4] == [str(told["used_cells"]), str(told["capacity_cells"])]


def test_a_low_screen_leaves_sessions_out_and_says_how_many(real: RunningServer) -> None:
    answer = Server(real.url, None).memory()
    answer["sessions"] = [{**answer["sessions"][0], "id": i} for i in range(30)]
    console = Console(width=100)
    with console.capture() as capture:
        console.print(frame(real.url, answer, 100, 24))
    lines = capture.get().splitlines()
    assert len(lines) <= 24
    assert "and 19 more" in capture.get()


def test_events_since_the_last_look(real: RunningServer) -> None:
    before = Server(real.url, None).memory()["events"][-1]["number"]
    real.post("/memory", shrink=True)
    real.post("/v1/completions", prompt="while True:" * 40, max_tokens=2)
    events = Server(real.url, None).memory(since=before)["events"]
    assert events
    assert all(event["number"] > before for event in events)


def test_nobody_there(capfd: pytest.CaptureFixture[str], free_tcp_port: int) -> None:
    code, _, err = top(capfd, f"127.0.0.1:{free_tcp_port}")
    assert code == 1
    assert "elastikv serve" in err
    assert len(err.splitlines()) == 1


def test_a_server_with_a_key(
    engine: FakeAsyncLLM, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ELASTIKV_API_KEY", raising=False)
    with running(engine, api_keys=("secret",)) as server:
        code, _, err = top(capfd, server.url, "--once")
        assert code == 1
        assert "--api-key" in err
        assert top(capfd, server.url, "--once", "--api-key", "secret")[0] == 0
        monkeypatch.setenv("ELASTIKV_API_KEY", "secret,other")
        assert top(capfd, server.url, "--once")[0] == 0


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"sessions": 1}'])
def test_another_kind_of_server(body: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        code, _, err = top(capfd, f"http://127.0.0.1:{server.server_port}", "--once")
        server.shutdown()
        thread.join()
    assert code == 1
    assert "no server of elastikv's" in err


@pytest.mark.parametrize("url", ["http://", "ftp://x", "http://[::1", "http://a b"])
def test_no_address(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = top(capfd, url, "--once")
    assert code == 1
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "1e9"])
def test_no_interval(seconds: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = top(capfd, "--interval", seconds)
    assert code == 1
    assert "--interval" in err
