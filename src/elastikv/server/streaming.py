"""Answers that end when their client does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from elastikv.server.limits import ClientGone

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"


def event(data: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def named_event(data: Mapping[str, Any]) -> bytes:
    """One server-sent event that is called what its ``type`` says."""
    return b"event: " + str(data["type"]).encode() + b"\n" + event(data)


async def while_connected(receive: Receive, awaitable: Awaitable[T]) -> T:
    """Await, but cancel it and raise ``ClientGone`` as soon as the client closes its connection."""
    work = asyncio.ensure_future(awaitable)
    gone = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientGone
        return work.result()
    finally:
        work.cancel()
        gone.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events; ``first`` has been taken from ``events`` already, so that a refusal could have its status."""

    def __init__(self, first: bytes, events: AsyncGenerator[bytes, None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(_chain(first, events), headers=headers, media_type="text/event-stream")
        self._events = events

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client closes its connection."""
        async with aclosing(self._events):
            await while_connected(receive, self.stream_response(send))


async def _chain(first: bytes, events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    yield first
    async for data in events:
        yield data
