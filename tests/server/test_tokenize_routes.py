from __future__ import annotations

import pytest
from fake_engine import FakeAsyncLLM
from running import RunningServer

from elastikv.weights.tokenizer import Tokenizer


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


def test_a_model_without_a_tokenizer(engine: FakeAsyncLLM, server: RunningServer) -> None:
    """What needs text is refused in one sentence."""
    engine.llm.tokenizer = Tokenizer(None)
    for path, body in (
        ("/tokenize", {"content": "x"}),
        ("/detokenize", {"tokens": [1]}),
        ("/v1/completions", {"model": "m", "prompt": "x"}),
    ):
        response = server.post(path, **body)
        assert response.status_code == 400
        assert response.json()["error"]["message"].startswith("this model came without a tokenizer: give token ids")
    assert server.post("/v1/chat/completions", messages=[{"role": "user", "content": "x"}]).status_code == 400
    assert server.http.get("/props").json()["chat_template"] is None
