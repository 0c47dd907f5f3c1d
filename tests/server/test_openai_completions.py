from __future__ import annotations

import openai
import pytest
from fake_engine import FakeAsyncLLM
from openai import OpenAI
from running import RunningServer


def test_a_text_goes_on(client: OpenAI) -> None:
    reply = client.completions.create(model="any", prompt="hello", max_tokens=3)
    assert reply.object == "text_completion"
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("hel", "length")
    assert reply.usage.completion_tokens == 3


def test_a_stream_of_text(client: OpenAI) -> None:
    chunks = list(client.completions.create(model="any", prompt="hä?", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "hä?"
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("prompt", ["ab", [97, 98]])
def test_text_and_tokens_are_the_same_prompt(client: OpenAI, prompt: str | list[int]) -> None:
    assert client.completions.create(model="any", prompt=prompt).choices[0].text == "ab"


def test_choices_of_several_prompts_stand_in_order(client: OpenAI) -> None:
    reply = client.completions.create(model="any", prompt=["one", "two!"], n=2)
    assert [choice.text for choice in reply.choices] == ["one", "one", "two!", "two!"]
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert reply.usage.prompt_tokens == 7
    assert reply.usage.completion_tokens == 14


def test_token_lists_are_several_prompts_too(client: OpenAI) -> None:
    reply = client.completions.create(model="any", prompt=[[97], [98, 99]])
    assert [choice.text for choice in reply.choices] == ["a", "bc"]


def test_logprobs_in_columns_whole_and_streamed(client: OpenAI) -> None:
    whole = client.completions.create(model="any", prompt="abc", logprobs=1).choices[0].logprobs
    assert whole.tokens == ["a", "b", "c"]
    assert whole.token_logprobs == [-0.5] * 3
    assert whole.top_logprobs == [{"a": -9999.0}] * 3
    assert whole.text_offset == [0, 1, 2]
    chunks = client.completions.create(model="any", prompt="abc", logprobs=1, stream=True)
    told = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].finish_reason is None]
    assert [offset for logprobs in told for offset in logprobs.text_offset] == [0, 1, 2]


@pytest.mark.parametrize("wish", [{"echo": True, "logprobs": 1}, {"suffix": "end"}, {"best_of": 3}])
def test_what_is_not_supported_is_refused_by_name(server: RunningServer, wish: dict) -> None:
    response = server.post("/v1/completions", prompt="x", **wish)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == next(iter(wish))


@pytest.mark.parametrize("prompt", ["", [], [""], [[]], ["a", ""], [257], [[1], [300]]])
def test_a_prompt_that_is_none(server: RunningServer, prompt: object) -> None:
    response = server.post("/v1/completions", prompt=prompt)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"


def test_a_flood_of_prompts_is_refused(client: OpenAI, engine: FakeAsyncLLM) -> None:
    with pytest.raises(openai.BadRequestError, match="more than 128 generations"):
        client.completions.create(model="any", prompt=["x"] * 65, n=2)
    assert engine.requests == []
