"""Requests as they end: for the metrics, and for the access log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

access_log = logging.getLogger("elastikv.access")

Observe = Callable[[Scope, int, float], None]


class ObserveRequests:
    """Calls ``observe`` with scope, status and seconds of every request. A client that went away counts as 499."""

    def __init__(self, app: ASGIApp, observe: Observe) -> None:
        self.app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and report it when it has ended."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 499

        async def noting_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting_status)
        finally:
            self._observe(scope, status, time.perf_counter() - started)


def log_request(scope: Scope, status: int, seconds: float) -> None:
    """One line; no query, which may hold what is nobody's business, and no body."""
    # Quoted again, so that no path can begin a line of its own.
    client, method, path = scope["client"][0] if scope["client"] else "-", scope["method"], quote(scope["path"])
    fields = {"client": client, "method": method, "path": path, "status": status, "seconds": round(seconds, 6)}
    access_log.info('%s "%s %s" %d %.3f s', client, method, path, status, seconds, extra={"fields": fields})
