"""The ``openai`` client against a real ``elastikv serve`` process."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from serve_process import ServeProcess, serving, start
from support.tiny_models import tiny_model

N_CTX = 1024


@pytest.fixture(scope="module", params=["qwen3_5", pytest.param("llama", marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    model = tiny_model(request.param, tmp_path_factory.mktemp("models") / request.param)
    with serving(model, "-c", str(N_CTX), "--parallel", "8", "--kv-budget", "256MiB") as running:
        yield running


@pytest.fixture
def client(server: ServeProcess) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as openai_client:
        yield openai_client


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_the_log_says_when_it_is_ready_and_what_it_serves(server: ServeProcess) -> None:
    listening, ready = server.lines[:2]
    assert " elastikv: listening on http://127.0.0.1:" in listening
    assert f", -c {N_CTX}, budget 256 MiB, 8 replies at once, 1 threads, elastikv 0." in ready


def test_greedy_replies_repeat_and_reuse_their_prompt(client: OpenAI) -> None:
    def ask():
        return client.chat.completions.create(model="x", messages=chat("hello " * 20), max_tokens=24, temperature=0)

    first, second = ask(), ask()
    assert first.choices[0].message.content == second.choices[0].message.content
    assert first.usage.completion_tokens == 24
    assert second.usage.prompt_tokens_details.cached_tokens > first.usage.prompt_tokens // 2


def test_a_stream_is_the_whole_reply_and_whole_characters(client: OpenAI) -> None:
    wish = {"model": "x", "messages": chat("Größe 東京 🙂"), "max_tokens": 120, "temperature": 0}
    whole = client.chat.completions.create(**wish).choices[0].message.content
    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**wish, stream=True)]
    assert "".join(pieces) == whole
    assert len(pieces) > 3


def test_seeds_make_choices_that_repeat(client: OpenAI) -> None:
    def ask(n: int, seed: int) -> list[str]:
        reply = client.completions.create(model="x", prompt="Once upon", n=n, seed=seed, max_tokens=12, temperature=1.5)
        return [choice.text for choice in reply.choices]

    three = ask(3, 5)
    assert len(set(three)) == 3
    assert ask(1, 5) == three[:1]
    assert ask(1, 7) == three[2:]


def test_stop_strings_do_not_show(client: OpenAI) -> None:
    wish = {"model": "x", "prompt": "abc", "max_tokens": 40, "temperature": 0, "extra_body": {"ignore_eos": True}}
    text = client.completions.create(**wish).choices[0].text
    stop = text[10:13]
    reply = client.completions.create(**wish, stop=[stop])
    assert reply.choices[0].text == text[: text.index(stop)]
    assert reply.choices[0].finish_reason == "stop"


def test_32_sessions_at_once_say_what_they_say_alone(server: ServeProcess, client: OpenAI) -> None:
    prompts = [f"number {i} " * (1 + i % 7 * 4) for i in range(32)]
    wish = {"model": "x", "max_tokens": 16, "temperature": 0}

    async def all_at_once() -> list[str]:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as together:
            replies = await asyncio.gather(*(together.completions.create(prompt=text, **wish) for text in prompts))
        return [reply.choices[0].text for reply in replies]

    crowd = asyncio.run(all_at_once())
    alone = [client.completions.create(prompt=text, **wish).choices[0].text for text in prompts]
    assert crowd == alone


def test_a_client_that_leaves_ends_its_generation(server: ServeProcess, client: OpenAI) -> None:
    stream = client.completions.create(
        model="x", prompt="go on", max_tokens=900, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 5
    while server.get("/memory")["n_running"]:
        assert time.monotonic() < deadline, "the generation goes on without a reader"
    session = max(server.get("/slots"), key=lambda slot: slot["id"])
    assert session["n_generated"] < 900


def test_a_long_prompt_is_refused_with_both_numbers(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="x", prompt=[5] * 2000)
    assert caught.value.body["n_prompt_tokens"] == 2000
    assert caught.value.body["n_ctx"] == N_CTX


def test_memory_is_given_back(server: ServeProcess, client: OpenAI) -> None:
    client.completions.create(model="x", prompt=[5] * 600, max_tokens=4)
    before = server.get("/memory")
    freed = httpx.post(f"{server.url}/memory", json={"shrink": True}).json()["freed_bytes"]
    after = server.get("/memory")
    assert after["committed_bytes"] == before["committed_bytes"] - freed
    assert after["used_bytes"] <= after["committed_bytes"] < after["static_bytes"]


def test_a_budget_that_is_too_small_is_told(server: ServeProcess, client: OpenAI) -> None:
    assert httpx.post(f"{server.url}/memory", json={"budget": "1KiB"}).status_code == 200
    try:
        with pytest.raises(openai.BadRequestError, match="--kv-budget"):
            client.completions.create(model="x", prompt=[5] * 900)
    finally:
        httpx.post(f"{server.url}/memory", json={"budget": "256MiB"})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.slow
def test_sigterm_lets_replies_end_and_parks_sessions(model: Path, tmp_path: Path) -> None:
    park = tmp_path / "park"
    ended = {"prompt": "remember this " * 20, "max_tokens": 1}
    running = {"prompt": "and go on", "max_tokens": 200, "stream": True, "ignore_eos": True}
    with serving(model, "--kv-park", str(park), "--drain", "20") as server:
        httpx.post(f"{server.url}/v1/completions", json=ended)
        with httpx.stream("POST", f"{server.url}/v1/completions", json=running, timeout=30) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert "warning" not in rest[-2]
        assert server.wait() == 0
    assert len(list(park.iterdir())) == 2
    with serving(model, "--kv-park", str(park)) as server:
        reply = httpx.post(f"{server.url}/v1/completions", json=ended).json()
        usage = reply["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1


@pytest.mark.slow
def test_a_saved_session_survives_a_restart(model: Path, tmp_path: Path) -> None:
    prompt = "keep me " * 30
    with serving(model, "--slot-save-path", str(tmp_path)) as server:
        httpx.post(f"{server.url}/v1/completions", json={"prompt": prompt, "max_tokens": 3})
        saved = httpx.post(f"{server.url}/slots/0?action=save", json={"filename": "kept"}).json()
        assert saved["n_saved"] > 30
    with serving(model, "--slot-save-path", str(tmp_path)) as server:
        restored = httpx.post(f"{server.url}/slots/0?action=restore", json={"filename": "kept"}).json()
        assert restored["n_restored"] == saved["n_saved"]
        (tmp_path / "kept").write_bytes((tmp_path / "kept").read_bytes()[:-10])
        broken = httpx.post(f"{server.url}/slots/0?action=restore", json={"filename": "kept"})
        assert broken.status_code == 400


def test_a_model_that_is_not_there_ends_the_server(tmp_path: Path) -> None:
    server = start("-m", str(tmp_path / "nothing"))
    assert server.wait() == 1
    assert " elastikv: error: " in server.lines[-1]


def test_every_line_of_a_json_log_is_json(tmp_path: Path) -> None:
    server = start("-m", str(tmp_path / "nothing"), "--log-format", "json")
    assert server.wait() == 1
    entries = [json.loads(line) for line in server.lines]
    assert [entry["level"] for entry in entries] == ["info", "error"]
    assert "nothing" in entries[1]["message"]
