"""uvicorn's HTTP/1.1 connection, with timeouts.

uvicorn waits for ever for the rest of a head, for the rest of a body that it has answered already, and for a client
that reads nothing of a whole answer; h11, which parses here, knows no time at all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import h11
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol

from elastikv.server.errors import APIError


def connections(timeout: float) -> type[asyncio.Protocol]:
    """What ``uvicorn.Config(http=...)`` takes: connections that wait ``timeout`` seconds at most."""
    return type("PatientFor", (Connection,), {"timeout": timeout})


class Connection(H11Protocol):
    """Closes where the client keeps it waiting; 408 for half a head, and errors as OpenAI's clients expect them."""

    timeout: float

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._reading = _Deadline(self.loop, self.timeout, self._give_up)
        self._writing = _Deadline(self.loop, self.timeout, transport.abort)
        # Whatever the client does not take at once counts as not read.
        transport.set_write_buffer_limits(high=0)
        self._reading.start()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._reading.stop()
        self._writing.stop()
        super().connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        if self.conn.their_state is h11.MUST_CLOSE:
            return  # what follows the last request of a connection must not spoil its answer
        super().data_received(data)
        # A body that is not answered yet is waited for by ``LimitClient``.
        answered_early = self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY
        if self.conn.their_state is h11.IDLE or answered_early:
            self._reading.start()
        else:
            self._reading.stop()

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing.start()

    @override
    def resume_writing(self) -> None:
        super().resume_writing()
        self._writing.stop()

    @override
    def send_400_response(self, msg: str) -> None:
        self._refuse(APIError(400, "this is not HTTP/1.1 as RFC 9112 has it", code="bad_http"))

    def _give_up(self) -> None:
        half_a_head = self.conn.trailing_data[0] and self.conn.their_state is h11.IDLE
        if half_a_head:
            self._refuse(APIError(408, f"the head did not arrive within {self.timeout:g} s", code="timeout"))
        self.transport.close()

    def _refuse(self, error: APIError) -> None:
        """Answer, unless there is an answer already, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = error.response()
            head = h11.Response(status_code=error.status, headers=[*response.raw_headers, (b"connection", b"close")])
            asked_for_head = self.conn.our_state is h11.SEND_RESPONSE and self.scope["method"] == "HEAD"
            body = b"" if asked_for_head else bytes(response.body)
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None:
            self.cycle.disconnected = True  # or it would answer too
        self.transport.close()


class _Deadline:
    """Calls ``on_expiry`` once ``seconds`` have passed between a start and the next stop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, on_expiry: Callable[[], None]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._on_expiry = on_expiry
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start the timer; one that runs already goes on: a byte now and then buys no time."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._on_expiry)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
