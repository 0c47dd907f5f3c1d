from __future__ import annotations

import json

import openai
import pytest
from fake_engine import FakeAsyncLLM
from openai import OpenAI
from running import RunningServer

HELLO = [{"role": "user", "content": "grüß dich"}]
ECHO = "<user>grüß dich"


def test_a_reply_with_usage_and_timings(client: OpenAI) -> None:
    reply = client.chat.completions.create(model="any", messages=HELLO)

    assert reply.object == "chat.completion"
    assert reply.model == "fake-model"
    assert reply.choices[0].message.content == ECHO
    assert reply.choices[0].finish_reason == "stop"
    n_tokens = len(ECHO.encode())
    assert reply.usage.prompt_tokens == reply.usage.completion_tokens == n_tokens
    assert reply.usage.total_tokens == 2 * n_tokens
    assert reply.usage.prompt_tokens_details.cached_tokens == n_tokens // 2
    timings = reply.model_extra["timings"]
    assert timings["cache_n"] == n_tokens // 2
    assert timings["prompt_n"] == n_tokens - n_tokens // 2
    assert timings["prompt_ms"] == 250
    assert timings["predicted_per_second"] == pytest.approx((n_tokens - 1) / 0.5)


def test_a_stream_says_the_same_in_pieces(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="any", messages=HELLO, stream=True))

    assert chunks[0].choices[0].delta.to_dict() == {"role": "assistant", "content": None}
    assert chunks[-1].choices[0].delta.to_dict() == {}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ECHO
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[-1].model_extra["timings"]["predicted_n"] == len(ECHO.encode())
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_names_the_session_that_computes_it(client: OpenAI, server: RunningServer) -> None:
    client.chat.completions.create(model="any", messages=HELLO)
    chunks = list(client.chat.completions.create(model="any", messages=HELLO, stream=True))

    assert {chunk.model_extra["id_slot"] for chunk in chunks[1:]} == {1}
    assert [slot["id"] for slot in server.http.get("/slots").json()] == [0, 1]


def test_a_stream_ends_with_usage_only_if_asked(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="any", messages=HELLO, stream=True, n=2, stream_options={"include_usage": True}
        )
    )

    assert chunks[-1].choices == []
    n_tokens = len(ECHO.encode())
    assert chunks[-1].usage.prompt_tokens == n_tokens
    assert chunks[-1].usage.completion_tokens == chunks[-1].model_extra["timings"]["predicted_n"] == 2 * n_tokens


def test_the_events_are_what_the_protocol_says(server: RunningServer) -> None:
    with server.http.stream("POST", "/v1/chat/completions", json={"messages": HELLO, "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert "usage" not in json.loads(lines[0].removeprefix("data: "))


def test_several_choices_draw_from_seeds_of_their_own(client: OpenAI, engine: FakeAsyncLLM) -> None:
    reply = client.chat.completions.create(model="any", messages=HELLO, n=3, seed=2**64 - 2)

    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert [params.seed for params in engine.requests] == [2**64 - 2, 2**64 - 1, 0]


def test_several_choices_in_one_stream(client: OpenAI) -> None:
    texts = {0: "", 1: "", 2: ""}
    for chunk in client.chat.completions.create(model="any", messages=HELLO, n=3, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: ECHO, 1: ECHO, 2: ECHO}


def test_every_sampling_parameter_arrives(client: OpenAI, engine: FakeAsyncLLM) -> None:
    client.chat.completions.create(
        model="any",
        messages=HELLO,
        temperature=0.25,
        top_p=0.5,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        stop=["a", "b"],
        seed=7,
        logit_bias={"65": -100},
        max_tokens=9,
        max_completion_tokens=5,
        extra_body={"top_k": 3, "min_p": 0.1, "repeat_penalty": 1.1, "repeat_last_n": 8, "ignore_eos": True},
    )

    params = engine.requests[0]
    assert params.temperature == 0.25
    assert params.top_p == 0.5
    assert (params.presence_penalty, params.frequency_penalty) == (0.5, -0.5)
    assert params.stops == ("a", "b")
    assert params.seed == 7
    assert params.logit_bias == {65: -100}
    assert params.max_tokens == 5
    assert (params.top_k, params.min_p, params.repeat_penalty) == (3, 0.1, 1.1)
    assert (params.repeat_last_n, params.ignore_eos) == (8, True)


def test_without_a_bound_the_reply_ends_at_n_ctx(client: OpenAI, engine: FakeAsyncLLM) -> None:
    client.chat.completions.create(model="any", messages=HELLO)
    assert engine.requests[0].max_tokens is None


def test_logprobs_are_json_even_where_impossible(client: OpenAI) -> None:
    reply = client.chat.completions.create(model="any", messages=HELLO, max_tokens=2, logprobs=True, top_logprobs=2)

    first = reply.choices[0].logprobs.content[0]
    assert (first.token, first.logprob, first.bytes) == ("<", -0.5, [60])
    assert [(top.token, top.logprob) for top in first.top_logprobs] == [("a", -9999.0), ("b", -9999.0)]


def test_text_parts_are_joined_and_developers_are_system(client: OpenAI) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    reply = client.chat.completions.create(model="any", messages=messages)
    assert reply.choices[0].message.content == "<system>be brief<user>one two"


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(server: RunningServer, wish: dict, param: str) -> None:
    response = server.post("/v1/chat/completions", **{"messages": HELLO, **wish})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "not_supported_error"
    assert error["param"] == param


def test_plain_text_as_response_format_is_fine(client: OpenAI) -> None:
    reply = client.chat.completions.create(model="any", messages=HELLO, response_format={"type": "text"}, tools=[])
    assert reply.choices[0].message.content == ECHO


def test_a_model_without_a_template_says_so(client: OpenAI, engine: FakeAsyncLLM) -> None:
    engine.llm.tokenizer.has_chat_template = False
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model="any", messages=HELLO)
