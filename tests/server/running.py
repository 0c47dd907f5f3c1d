"""A server that runs: real sockets and uvicorn, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from fake_engine import FakeAsyncLLM

from elastikv.server import ServerSettings, create_app
from elastikv.server.connections import connections


class RunningServer:
    """``url`` and an ``http`` client of it; ``call`` runs something on the server's event loop."""

    def __init__(self, engine: FakeAsyncLLM, server: uvicorn.Server, url: str, headers: dict[str, str]) -> None:
        self.engine = engine
        self.server = server
        self.url = url
        self.http = httpx.Client(base_url=url, headers=headers, timeout=10, verify=False)  # no TLS, no certificates
        self.loop: asyncio.AbstractEventLoop | None = None

    def call(self, function: Callable[[], Any]) -> None:
        assert self.loop is not None
        self.loop.call_soon_threadsafe(function)

    def connect(self) -> socket.socket:
        """A bare connection, for what no client would send."""
        address = self.http.base_url
        return socket.create_connection((address.host, address.port), timeout=10)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body)


class Server(uvicorn.Server):
    """uvicorn's, which looks for the wish to end ten times a second: each test would wait for that."""

    async def main_loop(self) -> None:
        while not await self.on_tick(0):
            await asyncio.sleep(0.005)


@contextmanager
def running(
    engine: FakeAsyncLLM,
    *,
    load: Callable[[], Any] | None = None,
    load_failed: Callable[[BaseException], None] | None = None,
    port: int = 0,
    **settings: Any,
) -> Iterator[RunningServer]:
    """Serve ``engine`` on ``port``, or a free one; ``load`` instead of it to watch the loading."""
    told = ServerSettings(**settings)
    app = create_app(told, load or (lambda: engine), load_failed)
    http = connections(told.timeout)
    config = uvicorn.Config(app, port=port, http=http, log_level="error", timeout_graceful_shutdown=1)
    server = Server(config)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(server.serve()), daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    keys = settings.get("api_keys", ())
    headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
    handle = RunningServer(engine, server, f"http://127.0.0.1:{port}", headers)
    handle.loop = loop
    try:
        if load is None:
            wait_for(lambda: handle.http.get("/health").status_code == 200)
        yield handle
    finally:
        handle.http.close()
        server.should_exit = True
        thread.join(timeout=10)
        assert not thread.is_alive(), "the server did not stop"
        loop.close()


def raw_post(path: str, body: dict[str, Any], *lines: str) -> bytes:
    """A request as bytes, with further header ``lines``."""
    raw = json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {len(raw)}"]
    return "\r\n".join([*head, *lines, "", ""]).encode("latin-1") + raw


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Poll until ``condition`` holds; fails the test if it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
