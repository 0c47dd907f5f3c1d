"""What clients reach: it reads a request, has it routed by its beginning, and passes the answer on."""

from __future__ import annotations

import logging
from typing import Any

from ray.exceptions import RayActorError
from ray.util.metrics import Counter
from starlette.types import Message, Receive, Scope, Send

from elastikv.integrations.ray.request import forwarded
from elastikv.server.errors import unavailable
from elastikv.server.limits import LimitClient
from elastikv.server.settings import ServerSettings
from elastikv.server.streaming import event, named_event, while_connected

logger = logging.getLogger(__name__)

_ATTEMPTS = 3


class Front:
    """A deployment of Ray Serve. ``replicas``: the handle of the deployment that answers."""

    def __init__(self, settings: ServerSettings, replicas: Any) -> None:
        self._settings = settings
        self._replicas = replicas.options(method_name="answer", stream=True)
        self._lost = Counter(
            "elastikv_lost_replicas", "Requests whose replica died, by what became of them", tag_keys=("outcome",)
        )

    def __serve_build_asgi_app__(self) -> Any:
        """What Ray Serve calls for each request."""
        return LimitClient(self._serve, self._settings.max_body_bytes, self._settings.timeout)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "http":
            body = (await receive())["body"]  # all of it, as LimitClient has read it
            await while_connected(receive, self._answer(scope, body, send))

    async def _answer(self, scope: Scope, body: bytes, send: Send) -> None:
        """A replica that dies before its first message is replaced; after it, the client is told."""
        request = forwarded(scope, body)
        start: Message | None = None
        for _ in range(_ATTEMPTS):
            answer = self._replicas.options(session_id=request.session).remote(request)
            try:
                async for messages in answer:
                    for message in messages:
                        start = start or message
                        await send(message)
                return
            except RayActorError as error:
                logger.warning("a replica was lost while it answered %s: %s", scope["path"], error)
                if start is not None:
                    self._lost.inc(tags={"outcome": "cut"})
                    await _cut(scope["path"], start, send)
                    return
                self._lost.inc(tags={"outcome": "retried"})
            finally:
                answer.cancel()  # no harm after its end; before, the client has gone
        self._lost.inc(tags={"outcome": "refused"})
        refusal = unavailable(f"{_ATTEMPTS} replicas were lost, one after the other, before they could answer")
        await refusal.response(scope["path"])(scope, _nothing_more, send)


async def _cut(path: str, start: Message, send: Send) -> None:
    """An event that tells; what is no stream of events ends with a broken connection."""
    if not dict(start["headers"]).get(b"content-type", b"").startswith(b"text/event-stream"):
        raise ConnectionError("the replica was lost in the middle of its answer")
    error = unavailable("the replica that computed this was lost; send the request again")
    is_anthropic = path.startswith("/v1/messages")
    data = named_event(error.anthropic_body) if is_anthropic else event(error.body)
    await send({"type": "http.response.body", "body": data, "more_body": False})


async def _live(receive: Receive, send: Send) -> None:
    """ASGI's lifespan, in which nothing is to be done."""
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


async def _nothing_more() -> Message:
    return {"type": "http.disconnect"}
