"""A request on its way from a front to a replica, and how a router sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

from elastikv.integrations.ray.prefixes import Marks, mark_of_session, marks_of, prompt_parts

SESSION_HEADER = "x-session-id"
"""Ray Serve's own name for it."""

_SENT = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path")
_SENT_TOO = ("headers", "client", "server")


@dataclass(frozen=True, slots=True)
class Forwarded:
    """An HTTP request as a whole. session: what the client calls it, or empty; marks: of its prompt."""

    scope: dict[str, Any]
    body: bytes
    session: str
    marks: Marks

    @property
    def held_as(self) -> tuple[int, ...]:
        """The marks of what a replica holds that has computed it."""
        return (*self.marks, mark_of_session(self.session)) if self.session else tuple(self.marks)


def forwarded(scope: Scope, body: bytes) -> Forwarded:
    """What a front sends on of a request that it has read."""
    marks = marks_of(*prompt_parts(body)) if scope["method"] == "POST" else {}
    kept = {name: scope[name] for name in (*_SENT, *_SENT_TOO) if name in scope}
    return Forwarded(kept, body, Headers(scope=scope).get(SESSION_HEADER, ""), marks)
