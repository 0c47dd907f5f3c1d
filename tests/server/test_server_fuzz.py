"""A real server fuzzed three ways: by its description, with good requests of all kinds, and with spoilt bytes."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import FakeAsyncLLM
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from running import raw_post
from serve_process import ServeProcess, serving
from support.tiny_models import tiny_model

from elastikv.engine.params import SAMPLERS
from elastikv.server import ServerSettings, create_app

pytestmark = pytest.mark.slow
N_CTX = 128
N_EXAMPLES = 40
APP = create_app(ServerSettings(), FakeAsyncLLM)
LABELS = [
    f"{method} {route.path}"
    for route in APP.routes
    if isinstance(route, APIRoute) and route.include_in_schema
    for method in sorted(route.methods)
]


def fuzzed(n_examples: int = N_EXAMPLES) -> Any:
    return settings(max_examples=n_examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    folder: Path = tmp_path_factory.mktemp("fuzz")
    model = tiny_model("qwen3_5", folder / "model")
    slots = str(folder / "slots")
    with serving(
        model, "-c", str(N_CTX), "--slot-save-path", slots, "--kv-budget", "64MiB", "--timeout", "5"
    ) as process:
        yield process


@pytest.fixture(scope="module")
def operations() -> dict[str, Any]:
    """What the description has, by labels. schemathesis is imported here: that takes seconds of every test run."""
    import schemathesis

    found = schemathesis.openapi.from_dict(APP.openapi()).get_all_operations()
    described = {operation.label: operation for result in found if (operation := result.ok())}
    assert described.keys() == set(LABELS)
    return described


@pytest.fixture(autouse=True)
def well_afterwards(server: ServeProcess) -> Iterator[None]:
    yield
    assert httpx.post(f"{server.url}/memory", json={"budget": "64MiB"}).status_code == 200
    assert server.get("/memory/check") == {"sound": True, "problem": None}
    reply = httpx.post(f"{server.url}/v1/completions", json={"prompt": "hello", "max_tokens": 4}, timeout=30)
    assert reply.status_code == 200
    first = next((n for n, line in enumerate(server.lines) if "Traceback" in line), None)
    assert first is None, "\n".join(server.lines[first:])


@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize("label", LABELS)
def test_whatever_comes_is_answered_as_described(
    server: ServeProcess, operations: dict[str, Any], label: str, mode: str
) -> None:
    from schemathesis import GenerationMode
    from schemathesis.checks import positive_data_acceptance

    @fuzzed()
    @given(case=operations[label].as_strategy(generation_mode=GenerationMode(mode)))
    def check(case: Any) -> None:
        response = case.call(base_url=server.url, timeout=30)
        # Which values are in range is the model's and the sampler's business, and not in the description.
        case.validate_response(response, excluded_checks=[positive_data_acceptance])
        if response.status_code >= 400:
            assert set(response.json()["error"]) >= {"message", "type", "param", "code"}

    # Operations without parameters have nothing to be wrong in: then there is no negative case.
    with suppress(Unsatisfiable):
        check()


GOOD = st.fixed_dictionaries(
    {"max_tokens": st.integers(1, 8)},
    optional={
        "n": st.integers(1, 3),
        "stream": st.booleans(),
        "stream_options": st.just({"include_usage": True}),
        "seed": st.integers(-1, 2**64 - 1),
        "temperature": st.floats(0, 5),
        "top_k": st.integers(0, 2**31 - 1),
        "top_p": st.floats(0, 1, exclude_min=True),
        "min_p": st.floats(0, 1),
        "repeat_penalty": st.floats(0.1, 5),
        "presence_penalty": st.floats(-2, 2),
        "frequency_penalty": st.floats(-2, 2),
        "repeat_last_n": st.integers(-1, 2**31 - 1),
        "dry_multiplier": st.floats(0, 5),
        "dry_base": st.floats(1, 5),
        "dry_allowed_length": st.integers(0, 2**31 - 1),
        "dry_penalty_last_n": st.integers(-1, 2**31 - 1),
        "dry_sequence_breakers": st.lists(st.text("a\n: ", min_size=1, max_size=4), max_size=4),
        "top_n_sigma": st.floats(-1, 5),
        "typical_p": st.floats(0, 1, exclude_min=True),
        "xtc_probability": st.floats(0, 1),
        "xtc_threshold": st.floats(0, 1),
        "samplers": st.text("edskypmxt", max_size=12) | st.lists(st.sampled_from(SAMPLERS), max_size=12),
        "logit_bias": st.dictionaries(st.integers(0, 255).map(str), st.floats(-100, 100), max_size=4),
        "stop": st.lists(st.text(min_size=1, max_size=3), max_size=3),
        "ignore_eos": st.booleans(),
    },
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
PROMPT = TEXT | st.lists(st.integers(0, 255), min_size=1, max_size=40) | st.lists(TEXT, min_size=1, max_size=3)
CALL = st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": TEXT, "arguments": st.just('{"a": [1]}')})})
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"]), "content": TEXT},
    optional={"name": TEXT, "tool_call_id": TEXT, "reasoning_content": TEXT, "tool_calls": st.lists(CALL, max_size=2)},
)


@pytest.mark.parametrize(
    ("path", "member", "strategy"),
    [
        ("/v1/completions", "prompt", PROMPT),
        ("/v1/chat/completions", "messages", st.lists(TURN, min_size=1, max_size=2)),
    ],
)
def test_good_requests_generate(server: ServeProcess, path: str, member: str, strategy: Any) -> None:
    @fuzzed(3 * N_EXAMPLES)
    @given(wish=GOOD, value=strategy)
    def check(wish: dict, value: Any) -> None:
        response = httpx.post(f"{server.url}{path}", json={member: value, **wish}, timeout=60)
        error = response.json()["error"] if response.status_code != 200 else {}
        if error.get("code") == "context_length_exceeded":
            return
        assert response.status_code == 200, response.text
        if wish.get("stream"):
            assert response.text.endswith("data: [DONE]\n\n")
            return
        reply = response.json()
        n_prompts = len(value) if member == "prompt" and isinstance(value[0], str) and isinstance(value, list) else 1
        assert len(reply["choices"]) == n_prompts * wish.get("n", 1)
        assert reply["usage"]["completion_tokens"] <= len(reply["choices"]) * wish["max_tokens"]

    check()


REQUEST = st.sampled_from(
    [
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"HEAD / HTTP/1.0\r\nHost: localhost\r\n\r\n",
        raw_post("/tokenize", {"content": "hi"}),
        raw_post("/v1/completions", {"prompt": "hi", "max_tokens": 2}),
        raw_post("/v1/completions", {"prompt": "hi", "max_tokens": 2, "stream": True}),
        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b'Transfer-Encoding: chunked\r\n\r\n6\r\n{"cont\r\n8\r\nent":""}\r\n0\r\n\r\n',
    ]
)
SPOILER = st.sampled_from([b"\0", b"\r", b"\n", b"\r\n\r\n", b" ", b":", b"0", b"Content-Length: 3\r\n", b"\xff"])
SPOILER |= st.just(b"Transfer-Encoding: chunked\r\n") | st.binary(max_size=4)


@st.composite
def spoilt_pipelines(draw: Any) -> list[bytes]:
    """Several requests in one, with bytes put in or taken out, in pieces that end anywhere."""
    raw = b"".join(draw(st.lists(REQUEST, min_size=1, max_size=4)))
    for _ in range(draw(st.integers(0, 3))):
        place, n_lost = draw(st.integers(0, len(raw))), draw(st.integers(0, 4))
        raw = raw[:place] + draw(SPOILER) + raw[place + n_lost :]
    cuts = sorted(draw(st.lists(st.integers(0, len(raw)), max_size=4)))
    return [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]


def test_spoilt_bytes_are_refused_or_served(server: ServeProcess) -> None:
    url = httpx.URL(server.url)

    @fuzzed(5 * N_EXAMPLES)
    @given(pieces=spoilt_pipelines())
    def check(pieces: list[bytes]) -> None:
        answer = b""
        # Closing early is good, and so is waiting for what was cut off.
        with socket.create_connection((url.host, url.port), timeout=1) as connection, suppress(OSError):
            for piece in [*pieces, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"]:
                connection.sendall(piece)
            while news := connection.recv(65536):
                answer += news
        statuses = {int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", answer)}
        assert statuses <= {100, 200, 400, 403, 404, 405, 408, 413, 415}, answer
        for error in re.findall(rb'{"error":[^\r\n]*?}}', answer):
            assert set(json.loads(error)["error"]) >= {"message", "type", "param", "code"}

    check()
