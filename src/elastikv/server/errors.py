"""Errors as OpenAI clients expect them: ``{"error": {"message", "type", "param", "code", ...}}``."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from elastikv.errors import (
    CacheFull,
    ElastikvError,
    EngineClosed,
    InvalidRequest,
    PromptTooLong,
    QueueFull,
    SnapshotError,
)

logger = logging.getLogger(__name__)


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

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, status_code=self.status, headers=self.headers)


def not_supported(param: str, message: str) -> APIError:
    """A request for something that OpenAI has and this server does not."""
    return APIError(400, message, type="not_supported_error", param=param, code="not_supported")


def unavailable(message: str) -> APIError:
    return APIError(503, message, type="unavailable_error", code="unavailable", headers={"Retry-After": "1"})


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
    return error.response()


async def _on_elastikv_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ElastikvError)
    return from_elastikv(error).response()


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = _param_name(first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    return APIError(400, f"{param}: {message}" if param else message, param=param).response()


def _param_name(location: Sequence[str | int]) -> str | None:
    """``("body", "messages", 0, "role")`` -> ``"messages.0.role"``."""
    return ".".join(str(part) for part in location[1:]) or None


async def _on_http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if error.status_code == 404:
        message = f"there is nothing at {request.url.path}"
    elif error.status_code == 405:
        message = f"{request.method} is not allowed at {request.url.path}"
    return APIError(error.status_code, message, headers=error.headers).response()


async def _on_bug(request: Request, error: Exception) -> JSONResponse:
    """Starlette logs the traceback; the client learns only that it is our fault."""
    return APIError(500, "the server made a mistake; its log has more", type="server_error").response()
