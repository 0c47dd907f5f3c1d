"""Errors of Anthropic's routes are of Anthropic's shape, wherever they come from."""

from __future__ import annotations

import json

import pytest
from fake_engine import FakeAsyncLLM
from running import RunningServer, running

BODY = {"model": "any", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}


def said(text: str) -> dict:
    return {**BODY, "messages": [{"role": "user", "content": text}]}


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/v1/messages", {}, 400, "invalid_request_error"),
        ("/v1/messages", said("x" * 600), 400, "invalid_request_error"),
        ("/v1/messages/count_tokens", {**BODY, "messages": 1}, 400, "invalid_request_error"),
        ("/v1/messages", {**BODY, "mirostat": 2}, 400, "invalid_request_error"),
        ("/v1/messages/nothing", BODY, 404, "not_found_error"),
    ],
)
def test_an_error_is_anthropics(server: RunningServer, path: str, body: dict, status: int, kind: str) -> None:
    response = server.post(path, **body)
    assert response.status_code == status
    told = response.json()
    assert (told["type"], told["error"]["type"]) == ("error", kind)
    assert told["error"]["message"]


def test_one_before_the_route_is_too() -> None:
    with running(FakeAsyncLLM(), api_keys=("secret",)) as server:
        response = server.http.post("/v1/messages", json=BODY, headers={"Authorization": "Bearer wrong"})
        assert (response.json()["type"], response.json()["error"]["type"]) == ("error", "authentication_error")


def test_others_are_openais(server: RunningServer) -> None:
    assert set(server.post("/v1/chat/completions").json()) == {"error"}


def test_one_in_a_stream_is_too(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elastikv.server.anthropic_messages._usage", lambda output: 1 // (output is None))
    response = server.post("/v1/messages", **BODY, stream=True)
    last = json.loads(response.text.strip().splitlines()[-1].removeprefix("data: "))
    assert (last["type"], last["error"]["type"]) == ("error", "api_error")
