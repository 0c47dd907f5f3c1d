from __future__ import annotations

import logging

import pytest
from fake_engine import FakeAsyncLLM
from running import running


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, logger="elastikv.access")
    return lambda: [record for record in caplog.records if record.name == "elastikv.access"]


def test_every_request_is_a_line_also_one_that_is_refused(lines) -> None:
    with running(FakeAsyncLLM(), log_requests=True, api_keys=("secret",)) as server:
        server.post("/v1/completions?token=private", prompt="x")
        server.http.get("/slots", headers={"Authorization": "Bearer wrong"})
        server.http.get("/a%0Ab%20%C3%A9")
    said = [record.fields for record in lines() if record.fields["path"] != "/health"]
    assert [(line["method"], line["path"], line["status"]) for line in said] == [
        ("POST", "/v1/completions", 200),
        ("GET", "/slots", 401),
        ("GET", "/a%0Ab%20%C3%A9", 404),
    ]
    assert all(line["client"] == "127.0.0.1" and line["seconds"] > 0 for line in said)
    assert all(len(record.getMessage().splitlines()) == 1 for record in lines())
    assert not any("private" in record.getMessage() for record in lines())


def test_there_is_none_unless_it_is_asked_for(lines) -> None:
    with running(FakeAsyncLLM()) as server:
        server.post("/v1/completions", prompt="x")
    assert lines() == []
