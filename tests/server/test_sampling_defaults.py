"""What ``elastikv serve`` was told about sampling holds where a request is silent."""

from __future__ import annotations

from fake_engine import FakeAsyncLLM
from running import running

from elastikv.engine.params import SamplingParams

DEFAULTS = SamplingParams(temperature=0.3, top_k=7, max_tokens=4, stop="!")


def test_a_silent_request_gets_the_servers_defaults() -> None:
    engine = FakeAsyncLLM()
    with running(engine, sampling=DEFAULTS) as server:
        server.post("/v1/completions", prompt="a long prompt")
        server.post("/v1/chat/completions", messages=[{"role": "user", "content": "hello"}], temperature=None)
        assert engine.requests == [DEFAULTS, DEFAULTS]
        assert server.http.get("/props").json()["default_generation_settings"]["params"]["top_k"] == 7


def test_what_a_request_says_counts() -> None:
    engine = FakeAsyncLLM()
    with running(engine, sampling=DEFAULTS) as server:
        server.post("/v1/completions", prompt="a long prompt", max_tokens=9, temperature=0, top_k=1, stop=["?"])
        wanted = SamplingParams(temperature=0, top_k=1, max_tokens=9, stop="?")
        assert engine.requests == [wanted]


def test_without_defaults_a_reply_has_no_bound() -> None:
    engine = FakeAsyncLLM()
    with running(engine) as server:
        server.post("/v1/completions", prompt="x")
        assert engine.requests == [SamplingParams(max_tokens=None)]
