"""The form that a request wants its text to have, in the words of OpenAI's server, llama-server and vLLM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from elastikv.engine.params import SamplingParams
from elastikv.errors import InvalidRequest
from elastikv.server.errors import APIError
from elastikv.server.schemas import GenerationRequest, ResponseFormat

_ANY_OBJECT = {"type": "object"}

_OF_VLLM: dict[str, Callable[[Any], dict[str, Any]]] = {
    "json": lambda value: {"json_schema": lenient(value)},
    "json_object": lambda value: {"json_schema": _ANY_OBJECT} if value else {},
    "regex": lambda value: {"regex": value},
    "choice": lambda value: {"choice": value},
    "grammar": lambda value: {"grammar": value},
}
"""Members of ``structured_outputs``; with ``guided_`` before them they were parameters of their own."""

_PARAMETERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "json_schema": lambda value: {"json_schema": lenient(value)},
    "grammar": lambda value: {"grammar": value},
    **{f"guided_{name}": form for name, form in _OF_VLLM.items() if name != "json_object"},
}


def form_params(body: GenerationRequest) -> dict[str, Any]:
    """What ``SamplingParams`` needs for the form that ``body`` asks for. Raises APIError (400) that names the place."""
    found: dict[str, dict[str, Any]] = {}
    for name, form in _PARAMETERS.items():
        value = getattr(body, name)
        if value or (value is not None and name in ("json_schema", "guided_json")):
            found[name] = form(value)
    if body.structured_outputs is not None:
        for name, value in body.structured_outputs.model_dump(exclude_none=True, by_alias=True).items():
            found[f"structured_outputs.{name}"] = _OF_VLLM[name](value)
    if body.response_format is not None:
        found["response_format"] = _of_response_format(body.response_format)
    found = {param: form for param, form in found.items() if form}
    if len(found) > 1:
        raise APIError(400, f"give the text one form; got {' and '.join(found)}", param=list(found)[1])
    for param, wanted in found.items():
        _check(param, wanted)
        return wanted
    return {}


def lenient(schema: Any) -> Any:
    """The schema, without a complaint about what cannot be enforced; what a client calls strict has to be."""
    return {**schema, "x-guidance": {"lenient": True}} if isinstance(schema, dict) else schema


def _of_response_format(wanted: ResponseFormat) -> dict[str, Any]:
    if wanted.type == "text":
        return {}
    # llama-server also takes the schema itself, and one beside "json_object".
    schema, strict = wanted.schema_, False
    if wanted.type == "json_schema" and wanted.json_schema is not None:
        schema, strict = wanted.json_schema.schema_, bool(wanted.json_schema.strict)
    if wanted.type == "json_schema" and schema is None:
        raise APIError(400, "response_format.json_schema.schema is missing", param="response_format.json_schema.schema")
    if schema is None:
        schema = _ANY_OBJECT
    return {"json_schema": schema if strict else lenient(schema)}


def _check(param: str, form: dict[str, Any]) -> None:
    """What ``SamplingParams`` says of it, with the name that the client knows it by."""
    try:
        SamplingParams(**form)
    except InvalidRequest as error:
        raise APIError(400, str(error).replace(next(iter(form)), param, 1), param=param) from error
