"""``/openapi.json`` tells the truth."""

from __future__ import annotations

import functools

import pytest
from fake_engine import FakeAsyncLLM
from running import RunningServer

from elastikv.server import ServerSettings, create_app


def description(**settings: object) -> dict:
    return create_app(ServerSettings(**settings), FakeAsyncLLM).openapi()


@functools.cache
def operations() -> dict[str, dict]:
    paths = description()["paths"]
    return {f"{method.upper()} {path}": found for path, methods in paths.items() for method, found in methods.items()}


@pytest.mark.parametrize("label", list(operations()))
def test_errors_are_those_that_come(label: str) -> None:
    operation = operations()[label]
    responses = set(operation["responses"])
    assert "422" not in responses
    assert {"200", "403", "503"} <= responses
    assert ("401" in responses) is (label != "GET /health")
    generates = label.endswith(("completions", "completion", "infill", "responses", "messages"))
    assert ("429" in responses) is generates
    assert ("404" in responses) is ("{" in label or "requestBody" in operation)
    if "requestBody" in operation:
        assert {"400", "408", "413", "415"} <= responses
    for status, response in operation["responses"].items():
        if status != "200":
            assert response["content"]["application/json"]["schema"]["$ref"] == "#/components/schemas/ErrorAnswer"


def test_keys_are_asked_for_where_there_are_some() -> None:
    keys = [{"bearer": []}, {"x_api_key": []}]
    asking, open_to_all = description(api_keys=("k",)), description()
    assert asking["security"] == keys
    assert open_to_all["security"] == [{}, *keys]
    for schema in (asking, open_to_all):
        assert set(schema["components"]["securitySchemes"]) == {"bearer", "x_api_key"}
        assert schema["paths"]["/health"]["get"]["security"] == []


def test_it_is_served_and_nothing_of_fastapis_own_is_left(server: RunningServer) -> None:
    schema = server.http.get("/openapi.json").json()
    assert schema == description()
    assert not [name for name in schema["components"]["schemas"] if "Validation" in name]


def test_answers_have_the_content_type_that_is_said(server: RunningServer) -> None:
    found = operations()
    assert server.http.get("/metrics").headers["content-type"].partition(";")[0] in content_of(found["GET /metrics"])
    for stream, kind in ((False, "application/json"), (True, "text/event-stream")):
        reply = server.post("/v1/completions", prompt="x", stream=stream)
        assert reply.headers["content-type"].partition(";")[0] == kind
        assert kind in content_of(found["POST /v1/completions"])


def content_of(operation: dict) -> set[str]:
    return set(operation["responses"]["200"]["content"])
