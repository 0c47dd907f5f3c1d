"""Numbers that llama-server tells, and the settings of a generation."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from fake_engine import FakeAsyncLLM
from real_engine import serving
from running import RunningServer

PROMPT = "def add(a, b):\n    return a + b\n" * 8
CHAT = {"messages": [{"role": "user", "content": PROMPT}]}
STREAMED = {"stream": True, "ignore_eos": True, "timings_per_token": True, "return_progress": True}


@pytest.fixture(scope="module")
def demo() -> Iterator[RunningServer]:
    with serving() as handle:
        yield handle


def events(text: str) -> list[dict]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/completion", {"prompt": PROMPT, "n_predict": 3}),
        ("/v1/completions", {"prompt": PROMPT, "max_tokens": 3}),
        ("/v1/chat/completions", {**CHAT, "max_tokens": 3}),
        ("/v1/responses", {"input": PROMPT, "max_output_tokens": 3}),
    ],
)
def test_progress_and_timings_come_with_a_stream(demo: RunningServer, path: str, body: dict) -> None:
    told = events(demo.post(path, **body, **STREAMED, cache_prompt=False).text)
    progress = [one for one in told if "prompt_progress" in one]
    first, last = (progress[i]["prompt_progress"] for i in (0, -1))
    assert (first["cache"], first["processed"], first["time_ms"]) == (0, 0, 0)
    assert last["processed"] == last["total"] == first["total"] > 0
    assert [one["timings"]["prompt_n"] for one in progress] == [one["prompt_progress"]["processed"] for one in progress]
    n_predicted = [one["timings"]["predicted_n"] for one in told if "timings" in one and one not in progress]
    assert n_predicted == sorted(n_predicted)
    assert n_predicted[0] < n_predicted[-1]
    assert not any("prompt_progress" in one for one in events(demo.post(path, **body, stream=True).text))


def test_probabilities_after_sampling(demo: RunningServer) -> None:
    body = {"prompt": "def f(x):", "n_predict": 4, "n_probs": 3, "seed": 1, "ignore_eos": True}
    plain = demo.post("/completion", **body).json()["completion_probabilities"]
    post = demo.post("/completion", **body, post_sampling_probs=True).json()["completion_probabilities"]
    assert [one["id"] for one in plain] == [one["id"] for one in post]
    for one in post:
        assert {"prob", "top_probs"} <= set(one)
        assert all(0 < other["prob"] <= 1 for other in [one, *one["top_probs"]])
    one_left = demo.post("/completion", **body, post_sampling_probs=True, top_k=1).json()["completion_probabilities"]
    assert [one["prob"] for one in one_left] == [1] * 4
    response = demo.post("/v1/chat/completions", **CHAT, post_sampling_probs=True)
    assert response.json()["error"]["param"] == "post_sampling_probs"


def test_a_full_context_is_told(server: RunningServer) -> None:
    assert server.post("/completion", prompt="x" * 300).json()["truncated"] is True
    assert server.post("/completion", prompt="x" * 300, n_predict=9).json()["truncated"] is False
    assert server.post("/completion", prompt="cut! here").json()["truncated"] is True


def test_end_tokens_that_are_ignored_are_told(server: RunningServer) -> None:
    settings = server.post("/completion", prompt="x", ignore_eos=True).json()["generation_settings"]
    assert settings["logit_bias"] == [{"token": 256, "bias": None}]
    assert server.post("/completion", prompt="x").json()["generation_settings"]["logit_bias"] == []


def test_a_reply_says_which_session_it_has(demo: RunningServer) -> None:
    reply = demo.post("/completion", prompt="def whose_session_is_it(", n_predict=2, id_slot=7).json()
    (session,) = [one for one in demo.http.get("/slots").json() if one["id"] == reply["id_slot"]]
    assert session["n_generated"] == 2


@pytest.mark.parametrize(("path", "body"), [("/v1/completions", {"prompt": "hi"}), ("/v1/chat/completions", CHAT)])
def test_verbose_shows_the_prompt(server: RunningServer, path: str, body: dict) -> None:
    assert body.get("prompt", PROMPT) in server.post(path, **body, verbose=True).json()["__verbose"]["prompt"]
    assert "__verbose" in events(server.post(path, **body, verbose=True, stream=True).text)[-1]
    assert "__verbose" not in server.post(path, **body).json()


def test_no_progress_without_a_stream(server: RunningServer, engine: FakeAsyncLLM) -> None:
    server.post("/completion", prompt="x", return_progress=True)
    assert not engine.requests[-1].return_progress
