"""uvicorn, with an end of its own: a signal drains the engine, so that every client gets an answer."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI
from typing_extensions import override

from elastikv.server.connections import connections
from elastikv.server.state import ServerState

logger = logging.getLogger(__name__)

_TO_READ_THE_END = 1.0
"""Seconds that clients have to read the last of their answers."""


class Server(uvicorn.Server):
    """Serves an app of ``create_app`` until SIGTERM or SIGINT, then drains for ``settings.drain`` seconds.

    A second signal ends the process at once, with what a shell says of that signal as its status.
    """

    def __init__(self, app: FastAPI) -> None:
        self._state: ServerState = app.state.server
        http = connections(self._state.settings.timeout)
        super().__init__(uvicorn.Config(app, http=http, log_config=None, access_log=False, server_header=False))
        self._signal: signal.Signals | None = None

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """uvicorn's own would raise the signal again after the drain; but a server that has drained has ended well."""
        if self._signal is not None:
            os._exit(128 + sig)
        self._signal = signal.Signals(sig)
        self.should_exit = True

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn closes the listener and waits until no connection is left; what they wait for is ended here."""
        drain = self._state.settings.drain
        if self._signal is not None:
            logger.info("%s: shutting down, replies in progress get %g s", self._signal.name, drain)
        ending = asyncio.create_task(self._end_requests(drain))
        await super().shutdown(sockets)
        await ending

    async def _end_requests(self, drain: float) -> None:
        draining = asyncio.create_task(self._state.models.drain(drain))
        # A step that is just being computed may keep an engine; clients and supervisors wait no longer.
        await asyncio.wait({draining}, timeout=drain + _TO_READ_THE_END)
        deadline = time.monotonic() + _TO_READ_THE_END
        while self.server_state.connections and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()
