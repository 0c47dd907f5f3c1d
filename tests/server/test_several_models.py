"""Several models behind one server: which answers, when they are loaded and put away, and what waits for them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import FakeAsyncLLM
from on_page import say as say_on_page
from on_page import wait_for_replies
from prometheus_client.parser import text_string_to_metric_families
from running import RunningServer, running, wait_for
from support.tiny_models import tiny_model

from elastikv import LLM, SchedulerOptions, SharedBudget
from elastikv.engine.async_llm import AsyncLLM
from elastikv.errors import CorruptFile
from elastikv.memory.machine import MachineMemory
from elastikv.server.models import Models, ServedModel

GIB = 1 << 30


class Shelf:
    """Models of 4 GiB each, of which a machine with ``n_bytes`` holds some; remembers what was loaded."""

    def __init__(self, n_bytes: int = 64 * GIB, names: str = "abc", **options: Any) -> None:
        self.total = n_bytes
        self.loads: list[str] = []
        self.engines: dict[str, FakeAsyncLLM] = {}
        self.may_load = threading.Event()
        self.may_load.set()
        served = [ServedModel(lambda name=name: self.load(name), name, 4 * GIB) for name in names]  # type: ignore[misc]
        self.models = Models(served, machine=self.machine, **options)

    def load(self, name: str) -> FakeAsyncLLM:
        assert self.may_load.wait(10)
        self.loads.append(name)
        engine = self.engines[name] = FakeAsyncLLM(step=0.01)
        engine.llm.model.info = replace(engine.llm.model.info, weight_bytes=4 * GIB)
        return engine

    def machine(self) -> MachineMemory:
        return MachineMemory(self.total, self.total - 4 * GIB * len(self.models.loaded))

    def status(self, server: RunningServer) -> dict[str, str]:
        return {model["id"]: model["status"]["value"] for model in server.http.get("/v1/models").json()["data"]}


@contextmanager
def serving(shelf: Shelf, *, wait: bool = True) -> Iterator[RunningServer]:
    """wait: until those that are loaded at the start are."""
    with running(FakeAsyncLLM(), models=shelf.models, load=None if wait else lambda: None) as server:
        yield server


def say(server: RunningServer, model: str | None, text: str = "x") -> httpx.Response:
    return server.post("/v1/completions", prompt=text, **({} if model is None else {"model": model}))


def test_the_request_chooses_and_the_first_is_the_default() -> None:
    shelf = Shelf(load="use")
    with serving(shelf) as server:
        assert shelf.status(server) == {"a": "unloaded", "b": "unloaded", "c": "unloaded"}
        for name in ("b", None):
            answer = say(server, name)
            assert (answer.status_code, answer.json()["model"]) == (200, name or "a")
        assert shelf.loads == ["b", "a"]
        assert shelf.status(server) == {"a": "loaded", "b": "loaded", "c": "unloaded"}
        assert server.http.get("/props", params={"model": "b"}).json()["model_alias"] == "b"
        assert server.http.get("/props", params={"model": "c"}).status_code == 503, "to look loads nothing"
        entries = {model["id"]: model for model in server.http.get("/v1/models").json()["data"]}
        assert "meta" in entries["a"]
        assert "meta" not in entries["c"]
    assert all(engine.closed for engine in shelf.engines.values())


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/tokenize", "/v1/embeddings", "/completion"])
def test_a_model_that_is_none_is_a_404_which_lists_them(path: str) -> None:
    with serving(Shelf(load="use")) as server:
        answer = server.post(path, model="d")
        assert answer.status_code == 404
        assert "a, b, c" in answer.json()["error"]["message"]
        assert server.http.get("/props?model=d").status_code == 404
        assert server.http.get("/v1/models/d").status_code == 404
        assert server.http.get("/v1/models/b").json()["id"] == "b"


def test_as_many_as_fit_are_loaded_at_the_start() -> None:
    shelf = Shelf(10 * GIB)
    with serving(shelf) as server:
        assert shelf.loads == ["a", "b"]
        assert say(server, "c").status_code == 200
        assert shelf.status(server) == {"a": "unloaded", "b": "loaded", "c": "loaded"}, "the longest unused went"


def test_no_more_than_asked_for_are_loaded_at_once() -> None:
    shelf = Shelf(most=1)
    with serving(shelf) as server:
        for name in "abcab":
            assert say(server, name).json()["model"] == name
        assert shelf.loads == list("abcab")
        assert list(shelf.status(server).values()).count("loaded") == 1


def test_what_is_in_use_stays_until_it_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    shelf = Shelf(5 * GIB, load="use")
    with serving(shelf) as server, ThreadPoolExecutor() as beside:
        long = beside.submit(say, server, "a", "a long text " * 20)
        wait_for(lambda: "a" in shelf.engines and shelf.engines["a"].n_generated > 3)
        other = beside.submit(say, server, "b")
        wait_for(lambda: "b waits for room: a is used" in caplog.text)
        late = beside.submit(say, server, "a")
        assert not wait([other], timeout=0.2).done
        assert long.result().status_code == other.result().status_code == late.result().status_code == 200
        assert shelf.loads == ["a", "b", "a"], "b had its turn before those that came later"
        assert "a is unloaded: b needs the room" in caplog.text


def test_requests_that_come_while_it_is_loaded_wait_for_one_loading() -> None:
    shelf = Shelf(load="use")
    shelf.may_load.clear()
    with serving(shelf) as server, ThreadPoolExecutor() as beside:
        answers = [beside.submit(say, server, "b") for _ in range(5)]
        wait_for(lambda: shelf.status(server)["b"] == "loading")
        assert server.http.get("/props?model=b").json()["error"]["message"] == "the model b is still loading"
        shelf.may_load.set()
        assert {answer.result().status_code for answer in answers} == {200}
        assert shelf.loads == ["b"]


def test_one_that_is_asked_for_during_the_start_is_loaded_once() -> None:
    shelf = Shelf(names="abcd")
    shelf.may_load.clear()
    with ThreadPoolExecutor() as beside, serving(shelf, wait=False) as server:
        answer = beside.submit(say, server, "c")
        wait_for(lambda: shelf.models.all[2].loading is not None)
        shelf.may_load.set()
        assert answer.result().status_code == 200
        wait_for(lambda: shelf.models.is_open)
        assert sorted(shelf.loads) == ["a", "b", "c", "d"]


def test_a_model_that_can_never_fit_is_refused_at_once() -> None:
    shelf = Shelf(3 * GIB, load="use")
    with serving(shelf) as server:
        answer = say(server, "b")
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "model_not_loaded"
        assert "4 GiB of weights, and this machine 3 GiB" in answer.json()["error"]["message"]
        assert shelf.loads == []


def test_one_that_cannot_be_loaded_is_told_and_tried_again() -> None:
    shelf = Shelf(load="use")
    broken = [True]
    good = shelf.models.all[1].load

    def load() -> FakeAsyncLLM:
        if broken:
            raise CorruptFile("b.gguf is truncated")
        return good()  # type: ignore[return-value]

    shelf.models.all[1].load = load  # type: ignore[assignment]
    with serving(shelf) as server:
        answer = say(server, "b")
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, "b.gguf is truncated")
        assert shelf.status(server)["b"] == "unloaded"
        broken.clear()
        assert say(server, "b").status_code == 200


def test_an_unused_one_is_put_away_and_comes_back() -> None:
    shelf = Shelf(idle_seconds=0.2)
    with serving(shelf) as server, ThreadPoolExecutor() as beside:
        long = beside.submit(say, server, "a", "a text that takes longer than that " * 2)
        wait_for(lambda: shelf.status(server) == {"a": "loaded", "b": "unloaded", "c": "unloaded"})
        assert long.result().status_code == 200
        wait_for(lambda: shelf.status(server)["a"] == "unloaded")
        assert server.http.get("/health").status_code == 200
        assert say(server, "a").status_code == 200


def test_clients_load_and_unload() -> None:
    shelf = Shelf(load="use")
    with serving(shelf) as server, ThreadPoolExecutor() as beside:
        assert server.post("/models/load", model="c").json() == {"success": True}
        wait_for(lambda: shelf.status(server)["c"] == "loaded")
        long = beside.submit(say, server, "c", "a long text " * 20)
        wait_for(lambda: shelf.engines["c"].n_generated > 1)
        refused = server.post("/models/unload", model="c")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "model_in_use")
        assert long.result().status_code == 200
        wait_for(lambda: server.post("/models/unload", model="c").status_code == 200)
        assert shelf.status(server)["c"] == "unloaded"
        assert server.post("/models/unload", model="c").json() == {"success": True}


def test_a_server_that_ends_refuses_those_that_wait() -> None:
    shelf = Shelf(load="use")
    shelf.may_load.clear()
    with ThreadPoolExecutor() as beside:
        with serving(shelf) as server:
            answer = beside.submit(say, server, "a")
            wait_for(lambda: shelf.status(server)["a"] == "loading")
            assert server.loop is not None
            asyncio.run_coroutine_threadsafe(shelf.models.drain(0), server.loop).result(5)
            assert answer.result().status_code == 503
            assert answer.result().json()["error"]["message"] == "the server is shutting down"
        shelf.may_load.set()


def test_metrics_tell_of_each() -> None:
    with serving(Shelf(load="use")) as server:
        say(server, "a", "abc")
        say(server, "b", "abcdef")
        families = {f.name: f for f in text_string_to_metric_families(server.http.get("/metrics").text)}
        generated = {s.labels["model"]: s.value for s in families["elastikv_generated_tokens"].samples}
        assert generated == {"a": 3, "b": 6}
        assert len(families["elastikv_kv_budget_bytes"].samples) == 1
        one = server.http.get("/metrics?model=b").text
        assert "llamacpp:tokens_predicted_total 6" in one
        assert "elastikv_generated_tokens_total 6.0" in one


# With real models


@pytest.fixture
def pair(tmp_path: Path) -> Callable[..., Models]:
    """Two models under a budget that holds one long session of either."""
    paths = {arch: tiny_model(arch, tmp_path / arch) for arch in ("llama", "qwen3")}
    options: dict[str, Any] = {
        "n_ctx": 512,
        "kernels": "reference",
        "kv_growth": "exact",
        "n_ubatch": 64,
        "n_threads": 1,
    }
    n_bytes = 0
    for path in paths.values():
        with LLM(path, **options) as probe:
            n_bytes += probe.budget.compute_bytes
            cells = probe.cost.n_bytes(400)

    def make(**chosen: Any) -> Models:
        shared = SharedBudget(n_bytes + cells)

        def load(arch: str) -> AsyncLLM:
            scheduler = SchedulerOptions(park_dir=tmp_path / "parked" / arch)
            return AsyncLLM(LLM(paths[arch], kv_budget=shared, scheduler=scheduler, **options))

        served = [ServedModel(lambda arch=arch: load(arch), arch) for arch in paths]  # type: ignore[misc]
        return Models(served, shared, **chosen)

    return make


def ask(server: RunningServer, model: str, n_prompt: int, n: int, seed: int = 0) -> dict[str, Any]:
    prompt = [(seed * 37 + i * 11) % 256 for i in range(n_prompt)]
    body = {"model": model, "prompt": prompt, "max_tokens": n, "temperature": 0, "ignore_eos": True}
    answer = server.http.post("/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_one_budget_for_two_real_models(pair: Callable[..., Models]) -> None:
    """Each alone wants three quarters: what is idle in one goes for the other, and nobody is cut."""
    with running(FakeAsyncLLM(), models=pair()) as server, ThreadPoolExecutor() as beside:
        alone = {arch: ask(server, arch, 200, 100)["choices"][0]["text"] for arch in ("llama", "qwen3", "llama")}
        together = [beside.submit(ask, server, arch, 200, 100) for arch in ("llama", "qwen3")]
        for arch, answer in zip(("llama", "qwen3"), together, strict=True):
            assert answer.result()["choices"][0]["text"] == alone[arch]
            assert answer.result()["choices"][0]["finish_reason"] == "length"
            assert "warning" not in answer.result()
        for arch in ("llama", "qwen3"):
            memory = server.http.get("/memory", params={"model": arch}).json()
            assert memory["peak_committed_bytes"] <= memory["budget_bytes"]
            assert memory["others_bytes"] >= 0
            assert server.http.get("/memory/check", params={"model": arch}).json()["sound"]


def test_an_unloaded_models_sessions_come_back(pair: Callable[..., Models]) -> None:
    with running(FakeAsyncLLM(), models=pair()) as server:
        first = ask(server, "llama", 200, 4)
        assert server.post("/models/unload", model="llama").status_code == 200
        rss = server.http.get("/memory", params={"model": "qwen3"}).json()["process_bytes"]
        assert rss > 0
        again = ask(server, "llama", 200, 4)
        assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= 199
        assert again["choices"] == first["choices"]


def test_a_text_that_needs_more_gets_what_an_unused_model_held(pair: Callable[..., Models]) -> None:
    """The other model's compute buffers: it is unloaded in the middle of the text, which goes on."""
    with running(FakeAsyncLLM(), models=pair()) as server:
        answer = ask(server, "llama", 300, 150)
        assert answer["usage"]["completion_tokens"] == 150
        time.sleep(0.1)
        states = {model["id"]: model["status"]["value"] for model in server.http.get("/v1/models").json()["data"]}
        assert states == {"llama": "loaded", "qwen3": "unloaded"}


def test_a_text_waits_as_long_as_it_takes_to_unload(
    pair: Callable[..., Models], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the end of the other's thread and the release of its memory nothing says that there is no more."""
    close = LLM.close
    monkeypatch.setattr(LLM, "close", lambda llm: (time.sleep(0.3), close(llm)))
    with running(FakeAsyncLLM(), models=pair()) as server:
        assert ask(server, "llama", 300, 150)["usage"]["completion_tokens"] == 150


# On the page


@pytest.mark.slow
def test_the_page_lets_choose_and_says_what_it_waits_for(page: Any) -> None:
    shelf = Shelf(load="use")
    with serving(shelf) as server:
        page.goto(server.url)
        names = page.locator("#models")
        names.wait_for()
        assert names.locator("option").all_inner_texts() == ["a", "b", "c"]
        page.wait_for_selector("#model:has-text('the model a is not loaded')")
        names.select_option("b")
        page.wait_for_selector("#model:has-text('the model b is not loaded')")
        shelf.may_load.clear()
        say_on_page(page, "hello")
        page.wait_for_selector("#model:has-text('the model b is still loading')")
        shelf.may_load.set()
        wait_for_replies(page, 1)
        page.wait_for_selector("#model:has-text('up to 512 tokens')")
        assert shelf.loads == ["b"]
        assert page.locator(".session.current").count() == 1
        page.reload()
        page.wait_for_selector("#model:has-text('up to 512 tokens')")
        assert names.input_value() == "b"


@pytest.mark.slow
def test_the_page_of_one_model_has_nothing_to_choose(page: Any, server: RunningServer) -> None:
    page.goto(server.url)
    page.wait_for_selector("#model:has-text('fake-model')")
    assert page.locator("#models").is_hidden()
