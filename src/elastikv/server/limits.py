"""What is checked before a request reaches a route: the key, and the body's size and time."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

import anyio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from elastikv.server.errors import APIError


class ClientGone(Exception):
    """The client closed its connection, or reads nothing any more; there is nobody to answer."""


class OneLength:
    """400 for a body with two lengths, and the connection closes: what follows may be a smuggled request.

    A proxy in front may believe ``Content-Length``, where the parser believes ``Transfer-Encoding`` (RFC 9112, 6.3).
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request with both headers; pass others on."""
        if scope["type"] != "http" or not {"content-length", "transfer-encoding"} <= set(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        message = "send Content-Length or Transfer-Encoding, not both"
        error = APIError(400, message, code="bad_http", headers={"Connection": "close"})
        await error.response(scope["path"])(scope, receive, send)


class RequireKey:
    """401 without one of the keys; open are ``/health`` and the page's own files, which hold no data."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request without a valid key; pass others on."""
        if scope["type"] != "http" or not self._keys or is_open(scope["path"]) or self._has_key(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        error = APIError(
            401,
            "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'",
            type="authentication_error",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await error.response(scope["path"])(scope, receive, send)

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return any(hmac.compare_digest(given.encode(), key) for key in self._keys)


def is_open(path: str) -> bool:
    """Whether a path is served without a key."""
    return path in ("/", "/health", "/v1/health") or path.startswith("/page/")


class LimitClient:
    """Read the whole body before the route runs, at most ``max_body_bytes`` and ``timeout`` seconds of it."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, timeout: float) -> None:
        self.app = app
        self._max_body_bytes = max_body_bytes
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body, then pass the request on; answer 413 or 408 where it is too large or too slow."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            body = await self._read_body(Headers(scope=scope), receive)
        except APIError as error:
            await error.response(scope["path"])(scope, receive, send)
            return
        except ClientGone:
            return
        replayed: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Message:
            return replayed.pop() if replayed else await receive()

        try:
            await self.app(scope, receive_again, send)
        except ClientGone:
            return

    async def _read_body(self, headers: Headers, receive: Receive) -> bytes:
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._max_body_bytes:
            raise self._too_large()
        body = bytearray()
        try:
            with anyio.fail_after(self._timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    body += message.get("body", b"")
                    if len(body) > self._max_body_bytes:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError as error:
            raise APIError(408, f"the body did not arrive within {self._timeout:g} s", code="timeout") from error

    def _too_large(self) -> APIError:
        return APIError(413, f"the body is larger than the {self._max_body_bytes} bytes allowed", code="body_too_large")
