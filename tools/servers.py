"""Server processes that benchmarks and tests start, watch and end."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO

import httpx
import psutil


class Server:
    """``url`` of a process that is ready, and what it wrote."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
        self.url = url
        self._process = process
        self._log = log

    def resident_bytes(self) -> int:
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def lines(self) -> list[str]:
        """Of stdout and stderr together, so far."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace").splitlines()

    def wait_until_healthy(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._is_healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the server did not start:\n" + "\n".join(self.lines()[-40:]))
            time.sleep(0.1)

    def _is_healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def end(self) -> int:
        """Ask it to end, and return its exit status."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=60)


def elastikv_serve(port: int, flags: Mapping[str, object]) -> list[str]:
    """The command of ``elastikv serve``."""
    parts = [str(part) for flag in ({"--port": port} | dict(flags)).items() for part in flag]
    return [sys.executable, "-m", "elastikv", "serve", *parts]


@contextmanager
def serving(command: Callable[[int], list[str]], seconds: float = 300) -> Iterator[Server]:
    """Run ``command(port)`` on a free port until it is healthy; killed in the end if it has not ended by then."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryFile() as log, subprocess.Popen(command(port), stdout=log, stderr=log) as process:
        try:
            server = Server(process, f"http://127.0.0.1:{port}", log)
            server.wait_until_healthy(seconds)
            yield server
        finally:
            process.kill()
