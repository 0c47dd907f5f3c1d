"""A real ``elastikv serve`` process with a tiny random model."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil


class ServeProcess:
    """``url`` of a process that has loaded its model, and what it wrote to stderr."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self.url = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def wait_until_listening(self) -> None:
        self._wait(lambda: any("listening on" in line for line in self.lines))
        self.url = next(match[1] for line in self.lines if (match := re.search(r"listening on (\S+)", line)))

    def wait_until_healthy(self) -> None:
        self._wait(lambda: self.health() == 200)

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert self.process.poll() is None, self.lines
            assert time.monotonic() < deadline, self.lines
            time.sleep(0.02)

    def health(self) -> int:
        try:
            return httpx.get(f"{self.url}/health", timeout=5).status_code
        except httpx.TransportError:
            return 0

    def get(self, path: str) -> dict:
        return httpx.get(f"{self.url}{path}", timeout=10).json()

    def resident_bytes(self) -> int:
        return psutil.Process(self.process.pid).memory_info().rss

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """The exit status of one that ends by itself, or has been told to."""
        status = self.process.wait(timeout=30)
        self._reader.join(timeout=5)
        return status


def start(*args: str) -> ServeProcess:
    """Start ``elastikv serve`` on a free port; it may still be loading."""
    kernels = () if "--runtime" in args else ("--kernels", "reference")
    command = [sys.executable, "-m", "elastikv", "serve", "--port", "0", "-t", "1", *kernels, *args]
    return ServeProcess(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))


@contextmanager
def serving(model: Path, *args: str) -> Iterator[ServeProcess]:
    """A server that is ready; killed at the end if it has not ended by then."""
    server = start("-m", str(model), *args)
    try:
        server.wait_until_listening()
        server.wait_until_healthy()
        yield server
    finally:
        if server.process.poll() is None:
            server.end(signal.SIGKILL)
