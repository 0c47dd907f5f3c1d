"""Served, refused by name, or without effect: no parameter that would change the answer is dropped."""

from __future__ import annotations

import json

import pytest
from fake_engine import FakeAsyncLLM
from running import RunningServer

from elastikv.server import parameters
from elastikv.server.chat_schemas import ChatRequest
from elastikv.server.schemas import CompletionRequest

CHAT = ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]})
TEXT = ("/v1/completions", {"prompt": "hello"})

# What issue 12 found dropped, with a value that asks for something.
ASKING = {
    "n_probs": 5,
    "mirostat": 2,
    "dynatemp_range": 0.5,
    "adaptive_target": 0.5,
    "min_keep": 2,
    "lora": [{"id": 0, "scale": 0.5}],
    "t_max_predict_ms": 500,
    "continue_final_message": True,
    "reasoning_format": "deepseek",
}


ALL = {
    **parameters.REFUSED,
    **parameters.REFUSED_BUT_BY_LLAMA,
    **parameters.REFUSED_IN_TEXT,
    **parameters.REFUSED_IN_CHAT,
}
CASES = [
    (CHAT, {**parameters.REFUSED, **parameters.REFUSED_BUT_BY_LLAMA, **parameters.REFUSED_IN_CHAT}),
    (TEXT, {**parameters.REFUSED, **parameters.REFUSED_BUT_BY_LLAMA, **parameters.REFUSED_IN_TEXT}),
]


@pytest.mark.parametrize(
    ("path_and_body", "name"), [(path_and_body, name) for path_and_body, refused in CASES for name in refused]
)
def test_what_would_change_the_answer_is_refused_by_name(
    server: RunningServer, path_and_body: tuple[str, dict], name: str
) -> None:
    path, body = path_and_body
    for value in (None, *ALL[name]):
        assert server.post(path, **body, **{name: value}).status_code == 200, value
    response = server.post(path, **body, **{name: ASKING.get(name, "something else")})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("not_supported_error", "unsupported_parameter", name)
    assert error["message"].startswith(f"{name} is not supported; ")


def test_the_table_has_all_that_was_found_and_nothing_that_is_served() -> None:
    assert set(ASKING) <= set(ALL)
    assert not set(parameters.REFUSED) & {*ChatRequest.model_fields, *CompletionRequest.model_fields}
    assert not set(parameters.REFUSED_IN_TEXT) & set(CompletionRequest.model_fields)
    assert not set(parameters.REFUSED_IN_CHAT) & set(ChatRequest.model_fields)


def test_members_that_change_nothing_are_ignored(server: RunningServer) -> None:
    """As a client that fills in every setting of llama-server's sends them, all samplers switched off."""
    off = {"mirostat": 0, "mirostat_tau": 5, "mirostat_eta": 0.1, "dry_multiplier": 0, "dry_base": 1.75}
    off |= {"dry_sequence_breakers": ["\n"], "xtc_probability": 0.0, "xtc_threshold": 0.1, "typical_p": 1.0}
    labels = {"user": "me", "metadata": {"a": "\ud800"}, "store": False, "no such thing": [1, {"a": None}]}
    for path, body in (CHAT, TEXT):
        raw = json.dumps({**body, **off, **labels})  # half a surrogate pair has to travel as an escape
        response = server.http.post(path, content=raw, headers={"Content-Type": "application/json"})
        assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("wish", "n_tokens"),
    [
        ({"n_predict": 2}, 2),
        ({"n_predict": 2, "max_tokens": 3}, 2),
        ({"n_predict": -1, "max_tokens": 3}, 5),
        ({"n_predict": None, "max_tokens": 3}, 3),
        ({"max_tokens": -1}, 5),
    ],
)
def test_n_predict_is_max_tokens(server: RunningServer, wish: dict, n_tokens: int) -> None:
    reply = server.post("/v1/completions", prompt="hello", **wish).json()
    assert reply["usage"]["completion_tokens"] == n_tokens


def test_openais_newest_name_goes_first(server: RunningServer, engine: FakeAsyncLLM) -> None:
    server.post(CHAT[0], **CHAT[1], max_completion_tokens=1, n_predict=2, max_tokens=3)
    assert engine.requests[0].max_tokens == 1


SAMPLERS = {
    "dry_multiplier": 0.8,
    "dry_base": 2,
    "dry_allowed_length": 3,
    "dry_penalty_last_n": -1,
    "dry_sequence_breakers": ["\n", "#"],
    "top_n_sigma": 1.5,
    "typical_p": 0.9,
    "xtc_probability": 0.5,
    "xtc_threshold": 0.2,
    "samplers": ["dry", "temperature", "top_k"],
}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        CHAT,
        TEXT,
        ("/completion", {"prompt": "hello"}),
        ("/v1/responses", {"input": "hi"}),
        ("/v1/messages", {**CHAT[1], "max_tokens": 9}),
    ],
)
def test_samplers_are_served_everywhere(server: RunningServer, engine: FakeAsyncLLM, path: str, body: dict) -> None:
    response = server.post(path, **body, **SAMPLERS)
    assert response.status_code == 200, response.text
    params = engine.requests[0]
    wanted = {**SAMPLERS, "dry_sequence_breakers": ("\n", "#"), "samplers": ("dry", "temperature", "top_k")}
    assert {name: getattr(params, name) for name in SAMPLERS} == wanted


def test_other_ways_to_name_samplers(server: RunningServer, engine: FakeAsyncLLM) -> None:
    server.post(TEXT[0], **TEXT[1], samplers="kt", typ_p=0.5)
    assert (engine.requests[0].samplers, engine.requests[0].typical_p) == (("top_k", "temperature"), 0.5)


def test_settings_of_samplers_are_told(server: RunningServer) -> None:
    settings = server.post("/completion", prompt="x", **SAMPLERS).json()["generation_settings"]
    assert {name: settings[name] for name in SAMPLERS} == SAMPLERS


def test_a_seed_of_minus_one_is_none(server: RunningServer, engine: FakeAsyncLLM) -> None:
    server.post(CHAT[0], **CHAT[1], seed=-1)
    assert engine.requests[0].seed is None


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ({"n_predict": -2}, "n_predict"),
        ({"max_completion_tokens": -2}, "max_completion_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"stop": [""]}, "stop"),
        ({"xtc_probability": 2}, "xtc_probability"),
        ({"samplers": ["infill"]}, "samplers"),
        ({"samplers": "ka"}, "samplers"),
        ({"dry_sequence_breakers": ["x" * 41]}, "dry_sequence_breakers"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ],
)
def test_a_value_out_of_range_is_named_as_the_client_wrote_it(server: RunningServer, wish: dict, param: str) -> None:
    response = server.post(CHAT[0], **CHAT[1], **wish)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert param in error["message"]


def test_logprobs_of_a_text_completion_are_named_so(server: RunningServer) -> None:
    assert server.post("/v1/completions", prompt="x", logprobs=21).json()["error"]["param"] == "logprobs"
