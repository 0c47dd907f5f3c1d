"""Errors as OpenAI's clients expect them: ``{"error": {"message", "type", "param", "code", ...}}``.

Anthropic's routes have ``"type": "error"`` beside it, and Anthropic's types in it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount

from elastikv.errors import (
    CacheFull,
    ElastikvError,
    EngineClosed,
    InvalidRequest,
    ModelError,
    PromptTooLong,
    QueueFull,
    SnapshotError,
)

logger = logging.getLogger(__name__)

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


class APIError(Exception):
    """An answer that is an error. ``extra`` members stand beside ``message`` in the error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        extra: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.body = {"error": {"message": message, "type": type, "param": param, "code": code, **(extra or {})}}

    @property
    def anthropic_body(self) -> dict[str, Any]:
        """The same in the shape of Anthropic's errors."""
        kind = _ANTHROPIC_TYPES.get(self.status, "invalid_request_error")
        return {"type": "error", "error": {**self.body["error"], "type": kind}}

    def response(self, path: str = "") -> JSONResponse:
        """The error as an HTTP response, in the shape that clients of ``path`` expect."""
        body = self.anthropic_body if path.startswith("/v1/messages") else self.body
        return JSONResponse(body, status_code=self.status, headers=self.headers)


def not_supported(param: str, message: str) -> APIError:
    """A request for something that other servers have and this one does not."""
    return APIError(400, message, type="not_supported_error", param=param, code="unsupported_parameter")


def unavailable(message: str) -> APIError:
    """A 503 that asks the client to try again in a second."""
    return APIError(503, message, type="unavailable_error", code="unavailable", headers={"Retry-After": "1"})


def a_mistake() -> APIError:
    """A 500 for a bug, which the log tells more about."""
    return APIError(500, "the server made a mistake; its log has more", type="server_error")


def from_elastikv(error: ElastikvError) -> APIError:
    """Refusals keep their numbers; retrying helps only against the ones that are 429 or 503."""
    message = str(error)
    if isinstance(error, PromptTooLong):
        return APIError(
            400,
            message,
            type="exceed_context_size_error",
            code="context_length_exceeded",
            extra={"n_prompt_tokens": error.n_prompt_tokens, "n_ctx": error.n_ctx},
        )
    if isinstance(error, QueueFull):
        seconds = str(max(math.ceil(error.retry_after), 1))
        return APIError(429, message, type="rate_limit_error", code="queue_full", headers={"Retry-After": seconds})
    if isinstance(error, CacheFull):
        numbers = {name: getattr(error, name) for name in ("resource", "asked", "left", "limit", "unit", "knob")}
        return APIError(400, message, type="cache_full_error", code="cache_full", extra=numbers)
    if isinstance(error, EngineClosed):
        return unavailable(message)
    if isinstance(error, InvalidRequest | SnapshotError):
        return APIError(400, message)
    if isinstance(error, ModelError):
        return APIError(400, message, type="server_error", param="model", code="model_not_loaded")
    logger.error("unexpected refusal: %s", message)
    return APIError(500, message, type="server_error")


def install(app: FastAPI) -> None:
    """Every way a request can fail ends in an OpenAI error object."""
    app.add_exception_handler(APIError, _on_api_error)
    app.add_exception_handler(ElastikvError, _on_elastikv_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)


async def _on_api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, APIError)
    return error.response(request.url.path)


async def _on_elastikv_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ElastikvError)
    return from_elastikv(error).response(request.url.path)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    paths = [_written_path(problem, error.body) for problem in problems]
    # Of a union all branches complain: the one that got furthest, or far enough for our own checks, was meant.
    path, problem = max(
        ((path, problem) for path, problem in zip(paths, problems, strict=True) if path[:1] == paths[0][:1]),
        key=lambda found: (len(found[0]), found[1]["type"] == "value_error"),
    )
    if problem["type"] == "json_invalid":
        path, message = [], f"the body is not JSON: {problem['ctx']['error']} at character {problem['loc'][-1]}"
    elif problem["loc"] == ("body",) and problem["type"] != "value_error":
        message = "the body must be a JSON object"
    else:
        message = str(problem["msg"]).removeprefix("Value error, ")
    # A member's name may be half of a surrogate pair, which an answer cannot repeat.
    param = ".".join(path).encode(errors="backslashreplace").decode() or None
    return APIError(400, f"{param}: {message}" if param else message, param=param).response(request.url.path)


def _written_path(problem: Mapping[str, Any], body: Any) -> list[str]:
    """``("body", "prompt", "list[str]", 1)`` -> ``["prompt", "1"]``: as the client wrote it, without union branches."""
    place, *steps = problem["loc"]
    if place != "body":
        return [str(step) for step in steps]
    path = []
    for step in steps:
        if step in body if isinstance(body, dict) else isinstance(body, list) and step in range(len(body)):
            path.append(str(step))
            body = body[step]
    return [*path, str(steps[-1])] if problem["type"] == "missing" and steps else path


async def require_json(request: Request) -> None:
    """A dependency: 415 for a body that does not say that it is JSON, because forms of other sites cannot say it."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return
    if await request.body():
        given = f", not {kind!r}" if kind else ""
        message = f"send the body with the header 'Content-Type: application/json'{given}"
        raise APIError(415, message, code="unsupported_media_type", headers={"Accept": "application/json"})


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    message, headers = str(error.detail), dict(error.headers or {})
    if error.status_code == 400:
        message = "the body cannot be read as JSON in UTF-8"  # the one thing that FastAPI says it of
    elif error.status_code == 404:
        sibling = "/" + path.strip("/")
        if path.endswith("/") and _methods_at(request.app, sibling):
            query = f"?{request.url.query}" if request.url.query else ""
            return RedirectResponse(quote(sibling) + query, 307)
        message = f"there is nothing at {path}"
    elif error.status_code == 405:
        message = f"{request.method} is not allowed at {path}"
        headers["Allow"] = ", ".join(_methods_at(request.app, path))
    return APIError(error.status_code, message, headers=headers).response(path)


def _methods_at(app: FastAPI, path: str) -> list[str]:
    """What some route answers there. Starlette tells only of the first route that has the path."""
    scope = {"type": "http", "path": path, "root_path": "", "headers": []}

    def is_answered(method: str) -> bool:
        # What is mounted takes every method, but our files can only be read.
        routes = [route for route in app.routes if method != "POST" or not isinstance(route, Mount)]
        return any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)

    return [method for method in ("GET", "HEAD", "POST") if is_answered(method)]


async def _on_bug(request: Request, error: Exception) -> JSONResponse:
    """Starlette logs the traceback; the client learns only that it is our fault."""
    return a_mistake().response(request.url.path)
