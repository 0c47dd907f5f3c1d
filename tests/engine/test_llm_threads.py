"""Several threads on one LLM: each gets its own text, and they are computed together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from support.tiny_models import tiny_model

from elastikv import LLM, EngineClosed, SamplingParams, SchedulerOptions
from elastikv.batch import Batch
from elastikv.engine.requests import Request

N_THREADS = 8
PARAMS = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("qwen3_5", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def llm(folder: Path) -> Iterator[LLM]:
    options = SchedulerOptions(n_parallel=N_THREADS)
    with LLM(folder, n_ctx=512, kv_dtype="f32", kernels="reference", n_batch=64, n_ubatch=32, scheduler=options) as llm:
        yield llm


def at_once(work: Callable[[int], object]) -> list:
    """``work(0)``, ``work(1)``... each in a thread of its own."""
    ready = threading.Barrier(N_THREADS)

    def run(index: int) -> object:
        ready.wait()
        return work(index)

    with ThreadPoolExecutor(N_THREADS) as pool:
        return list(pool.map(run, range(N_THREADS)))


def ask(llm: LLM, index: int) -> list[int]:
    """In another way from each thread."""
    prompt = f"{index}: once upon a time there was a cache"
    if index % 4 == 0:
        return llm.generate(prompt, PARAMS)[0].token_ids
    if index % 4 == 1:
        return [token_id for delta in llm.stream(prompt, PARAMS) for token_id in delta.token_ids]
    if index % 4 == 2:
        return llm.chat([{"role": "user", "content": prompt}], PARAMS).token_ids
    tokens = llm.tokenizer.encode(prompt)
    found = []
    for _ in range(24):
        found.append(int(llm.forward(tokens, seq_id=index)[-1].argmax()))
        tokens = [found[-1]]
    return found


def test_every_thread_gets_its_own_text(llm: LLM) -> None:
    alone = [ask(llm, index) for index in range(N_THREADS)]
    llm.clear()
    for _ in range(3):
        assert at_once(lambda index: ask(llm, index)) == alone
        llm.memory.check()
        llm.clear()
    assert not llm.scheduler.has_work


def test_what_threads_ask_for_is_computed_together(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    decode = llm.engine.decode

    def counted(batch: Batch) -> torch.Tensor:
        sizes.append(len(batch.entries))
        return decode(batch)

    all_queued, waited, step_for = threading.Barrier(N_THREADS), set[Request](), llm._step_for

    def when_all_are_queued(request: Request) -> None:
        """On a busy machine a thread may else come when another has ended."""
        if request not in waited:
            waited.add(request)
            all_queued.wait(timeout=30)
        step_for(request)

    monkeypatch.setattr(llm.engine, "decode", counted)
    monkeypatch.setattr(llm, "_step_for", when_all_are_queued)
    at_once(lambda index: llm.generate(f"{index}: a story", SamplingParams(max_tokens=100, ignore_eos=True)))
    assert max(sizes) == N_THREADS
    assert len(sizes) < N_THREADS * 100 // 2, "one after the other would take 800 steps"


def test_errors_are_for_the_thread_that_made_them(llm: LLM) -> None:
    def ask_or_err(index: int) -> object:
        try:
            return llm.generate([[index] if index % 2 else [-1]], PARAMS)[0].finish_reason
        except ValueError as error:
            return type(error).__name__

    assert at_once(ask_or_err) == ["InvalidRequest", "length"] * (N_THREADS // 2)
    llm.memory.check()


def test_closing_ends_what_other_threads_wait_for(llm: LLM) -> None:
    def run(index: int) -> object:
        if index == 0:
            while not llm.scheduler.has_work:
                pass
            return llm.close()
        try:
            return llm.generate("x", SamplingParams(max_tokens=None, ignore_eos=True))[0].finish_reason
        except EngineClosed:
            return "closed"

    assert set(at_once(run)) <= {None, "abort", "closed"}
    assert llm.budget.committed_bytes == 0


def test_every_thread_computes_on_as_many_cores_as_were_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """numba's setting is of the thread that makes it."""
    with LLM(folder, n_ctx=64, kernels="reference", n_threads=1) as llm:
        calls: list[tuple[int, int]] = []
        monkeypatch.setattr(llm.engine, "set_threads", lambda n: calls.append((threading.get_ident(), n)))
        at_once(lambda index: [llm.forward([1], seq_id=index) for _ in range(3)])
        assert len(calls) == len({thread for thread, _ in calls}) == N_THREADS
        assert {n for _, n in calls} == {1}
