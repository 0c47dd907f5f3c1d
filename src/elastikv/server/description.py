"""``/openapi.json``: what the routes say of themselves, and what every request may meet before it reaches one."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict

from elastikv.server.limits import is_open

_MEANINGS = {
    400: "A wrong value, named in `param`, or what is not supported",
    401: "The server asks for a key, and this one is missing or wrong",
    403: "A page of another site asked, or the Host is not the server's",
    404: "There is no such thing, or no model of this name",
    408: "The body did not arrive in time",
    409: "It is in use",
    413: "The body is larger than `--max-body`",
    415: "The body does not say that it is JSON",
    429: "Too many requests wait already; `Retry-After` says when to come again",
    501: "The server was started without what this needs",
    503: "The model is still loading",
    "default": "The server made a mistake",
}
_WITH_BODY = (400, 404, 408, 413, 415)


class ErrorDetail(BaseModel):
    """What is wrong; ``param`` names the member of the request, ``code`` is for programs."""

    model_config = ConfigDict(extra="allow")

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Every answer that is an error, as OpenAI's clients read it."""

    error: ErrorDetail


def errors(*statuses: int | str) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route that may fail so."""
    return {status: {"model": ErrorAnswer, "description": _MEANINGS[status]} for status in statuses}


def content(media_type: str) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route that answers with other than JSON.

    Of an event stream nothing more is said: OpenAPI 3.1 has no words for its events, and a schema would be theirs.
    """
    schema = {} if media_type == "text/event-stream" else {"schema": {"type": "string"}}
    return {200: {"content": {media_type: schema}}}


EVERYWHERE = errors(403, 503, "default")
"""With a ``default``, FastAPI does not claim that it answers wrong values with its own 422."""


def install(app: FastAPI, *, needs_key: bool) -> None:
    """Let ``app.openapi()`` tell the truth about keys and bodies."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(describe(), needs_key)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(schema: dict[str, Any], needs_key: bool) -> None:
    schema["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "A key of `--api-key`"},
        "x_api_key": {"type": "apiKey", "in": "header", "name": "X-Api-Key", "description": "The same key"},
    }
    # An empty requirement makes the others optional.
    schema["security"] = [*([] if needs_key else [{}]), {"bearer": []}, {"x_api_key": []}]
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            statuses = _WITH_BODY if "requestBody" in operation else (400,) if "parameters" in operation else ()
            if is_open(path):
                operation["security"] = []
            else:
                statuses = (*statuses, 401)
            for status in statuses:
                operation["responses"].setdefault(str(status), _reference(status))
            operation["responses"] = dict(sorted(operation["responses"].items()))


def _reference(status: int) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}}
    return {"description": _MEANINGS[status], "content": content}
