"""Embeddings in the words of two servers."""

from __future__ import annotations

import math

import pytest
from fake_engine import FakeAsyncLLM
from openai import OpenAI
from real_engine import serving
from running import RunningServer, running


def test_openais_client_gets_the_same_in_both_encodings() -> None:
    with serving() as demo, OpenAI(base_url=f"{demo.url}/v1", api_key="none") as client:
        request = {"model": "any", "input": ["def f(x):", "x = 1"]}
        as_base64 = client.embeddings.create(**request)  # what the client asks for by itself
        as_floats = client.embeddings.create(**request, encoding_format="float")
        for one, other in zip(as_base64.data, as_floats.data, strict=True):
            assert one.embedding == pytest.approx(other.embedding)
            assert math.isclose(sum(x * x for x in other.embedding), 1, rel_tol=1e-4)
        n_tokens = [len(demo.post("/tokenize", content=text).json()["tokens"]) for text in request["input"]]
        assert as_floats.usage.prompt_tokens == sum(n_tokens)
        ids = demo.post("/tokenize", content="x = 1").json()["tokens"]
        by_ids = client.embeddings.create(model="any", input=ids, encoding_format="float")
        assert by_ids.data[0].embedding == pytest.approx(as_floats.data[1].embedding)


def test_llama_servers_words(server: RunningServer) -> None:
    assert server.post("/embedding", content="x").json() == [{"index": 0, "embedding": [[0.6, 0.8]]}]
    reply = server.post("/embedding", input=["x", [1, 2]], embd_normalize=-1).json()
    assert [one["embedding"] for one in reply] == [[[3.0, 4.0]], [[3.0, 4.0]]]


def test_the_pooling_is_the_servers() -> None:
    engine = FakeAsyncLLM()
    with running(engine, pooling="last") as server:
        server.post("/v1/embeddings", input="x")
    assert engine.calls == [("embed", "last", True)]


def test_a_prompt_may_be_of_parts(server: RunningServer) -> None:
    parts = {"content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]}
    for given, n_prompts, n_tokens in (
        (parts, 1, 2),
        (["x", {"prompt_string": "yz"}, parts], 3, 5),
        ([120, "yz"], 1, 3),
        ([[120], [120, "yz"]], 2, 4),
    ):
        reply = server.post("/v1/embeddings", input=given).json()
        assert (len(reply["data"]), reply["usage"]["prompt_tokens"]) == (n_prompts, n_tokens)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {"input": {"content": [{"type": "image_url"}]}}, "input"),
        ("/v1/embeddings", {"input": ""}, "input"),
        ("/v1/embeddings", {"input": [[]]}, "input"),
        ("/v1/embeddings", {"input": [999]}, "input"),
        ("/v1/embeddings", {"input": "x", "dimensions": 8}, "dimensions"),
        ("/embedding", {}, "content"),
        ("/embedding", {"content": "x", "embd_normalize": 1}, "embd_normalize"),
    ],
)
def test_what_is_not_embedded_is_refused_by_name(server: RunningServer, path: str, body: dict, param: str) -> None:
    response = server.post(path, **body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
