from __future__ import annotations

import pytest
from running import RunningServer


def test_there_and_back(server: RunningServer) -> None:
    tokens = server.post("/tokenize", content="hä").json()["tokens"]
    assert tokens == list("hä".encode())
    assert server.post("/detokenize", tokens=tokens).json() == {"content": "hä"}


def test_pieces(server: RunningServer) -> None:
    pieces = server.post("/tokenize", content="ab", with_pieces=True).json()["tokens"]
    assert pieces == [{"id": 97, "piece": "a"}, {"id": 98, "piece": "b"}]


@pytest.mark.parametrize("tokens", [[257], [-1], ["x"], None, [2**40]])
def test_tokens_that_do_not_exist(server: RunningServer, tokens: object) -> None:
    response = server.post("/detokenize", tokens=tokens)
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("tokens")
