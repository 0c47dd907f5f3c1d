from __future__ import annotations

import pytest
from fake_engine import BYTES_PER_CELL, FakeAsyncLLM
from running import RunningServer


def test_the_memory_and_what_a_static_cache_would_hold(server: RunningServer) -> None:
    server.post("/v1/completions", prompt="hello")
    memory = server.http.get("/memory").json()
    assert memory["committed_bytes"] == 256 * BYTES_PER_CELL
    assert memory["used_bytes"] == 10 * BYTES_PER_CELL
    assert memory["static_bytes"] == 4 * 512 * BYTES_PER_CELL
    assert memory["process_bytes"] > 1 << 20
    (session,) = memory["sessions"]
    assert (session["used_bytes"], session["static_bytes"]) == (10 * BYTES_PER_CELL, 512 * BYTES_PER_CELL)


def test_events_are_told_once(server: RunningServer) -> None:
    server.post("/v1/completions", prompt="one")
    (first,) = server.http.get("/memory").json()["events"]
    assert (first["kind"], first["session"]) == ("resize", 0)
    server.post("/v1/completions", prompt="two")
    (second,) = server.http.get(f"/memory?since={first['number']}").json()["events"]
    assert second["session"] == 1


def test_the_memory_can_be_looked_through(server: RunningServer) -> None:
    assert server.http.get("/memory/check").json() == {"sound": True, "problem": None}
    server.post("/memory", shrink=True)
    answer = server.http.get("/memory/check").json()
    assert answer["sound"] is False
    assert "it was touched" in answer["problem"]


@pytest.mark.parametrize(
    ("wish", "call", "freed"),
    [
        ({"n_cells": 300}, ("resize", 300), 0),
        ({"shrink": True}, ("shrink",), 12345),
        ({"budget": "2GiB"}, ("budget", "2GiB"), 0),
    ],
)
def test_memory_changes_while_it_runs(
    server: RunningServer, engine: FakeAsyncLLM, wish: dict, call: tuple, freed: int
) -> None:
    response = server.post("/memory", **wish)
    assert response.status_code == 200
    assert engine.calls == [call]
    assert response.json()["freed_bytes"] == freed
    assert "committed_bytes" in response.json()


@pytest.mark.parametrize(
    "wish",
    [
        {},
        {"shrink": False},
        {"n_cells": 0},
        {"n_cells": 300, "shrink": True},
        {"budget": "much"},
        {"n_cells": 100_000},
        {"n_cells": 10**40},
    ],
)
def test_a_wish_that_cannot_be_granted(server: RunningServer, engine: FakeAsyncLLM, wish: dict) -> None:
    response = server.post("/memory", **wish)
    assert response.status_code == 400
    assert response.json()["error"]["message"]
    assert engine.calls == []
