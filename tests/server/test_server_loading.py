from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from fake_engine import FakeAsyncLLM
from running import running, wait_for

from elastikv.errors import CorruptFile
from elastikv.server.models import Models, ServedModel


def test_it_answers_while_the_model_loads() -> None:
    loaded = threading.Event()
    engine = FakeAsyncLLM()

    def load() -> FakeAsyncLLM:
        loaded.wait(10)
        return engine

    with running(engine, load=load) as server, ThreadPoolExecutor() as beside:
        for path in ("/health", "/v1/models", "/props", "/slots", "/memory"):
            response = server.http.get(path)
            assert response.status_code == 503
            assert response.json()["error"]["type"] == "unavailable_error"
            assert response.headers["retry-after"] == "1"
        assert server.http.get("/metrics").status_code == 200
        assert server.http.get("/").status_code == 200
        answer = beside.submit(server.post, "/v1/completions", prompt="x")
        assert not wait([answer], timeout=0.2).done, "what is to be computed waits for the model"
        loaded.set()
        assert answer.result().status_code == 200
        wait_for(lambda: server.http.get("/health").status_code == 200)
        assert engine.started


def test_a_model_that_cannot_be_loaded_is_reported() -> None:
    failures: list[BaseException] = []

    def load() -> FakeAsyncLLM:
        raise CorruptFile("truncated")

    with running(FakeAsyncLLM(), load=load, load_failed=failures.append) as server:
        wait_for(lambda: bool(failures))
        assert str(failures[0]) == "truncated"
        assert server.http.get("/health").status_code == 503


def test_it_can_be_stopped_while_the_model_loads() -> None:
    never = threading.Event()
    with running(FakeAsyncLLM(), load=lambda: never.wait(10) and FakeAsyncLLM()) as server:
        assert server.http.get("/health").status_code == 503


def test_the_engine_is_closed_at_the_end(engine: FakeAsyncLLM) -> None:
    with running(engine):
        assert not engine.closed
    assert engine.closed


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/gpt"])
def test_the_alias_is_the_models_name(engine: FakeAsyncLLM, path: str) -> None:
    with running(engine, models=Models([ServedModel(lambda: engine, "gpt")])) as server:
        answer = server.http.get(path).json()
        model = answer["data"][0] if "data" in answer else answer
        assert model["id"] == "gpt"
        assert model["meta"]["n_ctx"] == model["max_model_len"] == 512
        assert server.post("/v1/completions", prompt="x").json()["model"] == "gpt"


def test_props(engine: FakeAsyncLLM) -> None:
    with running(engine) as server:
        props = server.http.get("/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 512
    assert props["total_slots"] == 4
    assert props["chat_template"] == "{{ messages }}"
