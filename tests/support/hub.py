"""A Hugging Face Hub on this machine, as far as one fetches models from it, and commands that know no other."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from typing_extensions import override

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What it has and what it was asked. ``refuse``: (status, X-Error-Code) per repository; a token opens these.

    ``cuts``: bytes of a file after which a connection is closed, once for each number. ``stalls``: bytes after which
    nothing more comes, once; ``stalled`` tells when.
    """

    files: dict[str, dict[str, bytes]]
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    stalls: dict[str, int] = field(default_factory=dict)
    stalled: threading.Event = field(default_factory=threading.Event)
    requests: list[str] = field(default_factory=list)
    url: str = ""
    commit: str = COMMIT

    def ranges(self, name: str) -> list[str]:
        """The ranges in which a file's bytes were asked for."""
        return [words[2] for words in map(str.split, self.requests) if words[0] == "GET" and words[1].endswith(name)]


@contextmanager
def running(files: Mapping[str, Mapping[str, bytes]]) -> Iterator[Hub]:
    hub = Hub({repo: dict(each) for repo, each in files.items()})
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def environment(endpoint: str, cache: Path, **more: str) -> dict[str, str]:
    """huggingface_hub reads it when it is imported: it is for other processes than this one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return kept | {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "NO_PROXY": "127.0.0.1", **more}


def elastikv(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command: Sequence[str] = [sys.executable, "-m", "elastikv", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    @override
    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def _answer(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path} {self.headers.get('Range', 'all')}")
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._with_repository("/".join(parts[2:4]), self._list)
        elif parts[2:3] == ["resolve"]:
            self._with_repository("/".join(parts[:2]), self._send_file, "/".join(parts[4:]))
        else:
            self._send(404, b"")

    def _with_repository(self, repo: str, answer, *arguments: str) -> None:
        is_open = "Authorization" in self.headers
        if repo not in self.hub.files:
            # Who has no token is not told what there is not.
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif repo in self.hub.refuse and not is_open:
            status, code = self.hub.refuse[repo]
            self._send(status, b"", {"X-Error-Code": code})
        else:
            answer(self.hub.files[repo], *arguments)

    def _list(self, files: Mapping[str, bytes]) -> None:
        siblings = [{"rfilename": name} for name in files]
        body = {"id": "user/repo", "sha": self.hub.commit, "private": False, "siblings": siblings}
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _send_file(self, files: Mapping[str, bytes], name: str) -> None:
        if name not in files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.hub.commit})
            return
        content = files[name]
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": self.hub.commit,
            "Accept-Ranges": "bytes",
        }
        span = self.headers.get("Range", "")
        first, _, last = (span or "bytes=0-").removeprefix("bytes=").partition("-")
        body = content[int(first) : int(last) + 1 if last else None]
        if span:
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(body) - 1}/{len(content)}"
        if self.command == "GET" and name in self.hub.stalls:
            body = content[: self.hub.stalls.pop(name)]
            self._send(200, body, headers | {"Content-Length": str(len(content))})
            self.hub.stalled.set()
            self.rfile.read(1)  # until the client goes
            return
        cut = self.hub.cuts[name].pop(0) if self.command == "GET" and self.hub.cuts.get(name) else None
        self._send(206 if span else 200, body, headers, cut)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
            self.close_connection = cut is not None
