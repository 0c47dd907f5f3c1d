"""A closed LLM, and one in a process that was forked from its own, refuses everything by one typed error."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import tiny_model

from elastikv import LLM, AsyncLLM, EngineClosed, SamplingParams

USES: dict[str, Callable[[LLM], Any]] = {
    "generate": lambda llm: llm.generate("x"),
    "stream": lambda llm: list(llm.stream("x")),
    "chat": lambda llm: llm.chat([{"role": "user", "content": "x"}]),
    "submit": lambda llm: llm.submit("x"),
    "step": lambda llm: llm.step(),
    "embed": lambda llm: llm.embed("x"),
    "forward": lambda llm: llm.forward([1]),
    "stats": lambda llm: llm.stats(),
    "static_bytes": lambda llm: llm.static_bytes(),
    "set_budget": lambda llm: llm.set_budget("1GiB"),
    "shrink_to_fit": lambda llm: llm.shrink_to_fit(),
    "clear": lambda llm: llm.clear(),
    "turn": lambda llm: llm.turn().__enter__(),
    "engine": lambda llm: llm.engine,
    "scheduler": lambda llm: llm.scheduler,
    "memory": lambda llm: llm.memory,
    "model": lambda llm: llm.model,
    "n_ctx": lambda llm: llm.n_ctx,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("models") / "tiny")


def open_llm(folder: Path) -> LLM:
    return LLM(folder, n_ctx=64, kernels="reference")


def test_no_use_is_left_out() -> None:
    public = {name for name, _ in inspect.getmembers(LLM) if not name.startswith("_")}
    assert public - {"close", "abort"} == set(USES)


def test_after_close_every_use_is_refused_and_commits_nothing(folder: Path) -> None:
    llm = open_llm(folder)
    stream = llm.stream("x", SamplingParams(max_tokens=None, ignore_eos=True))
    next(stream)
    llm.close()
    for name, use in USES.items():
        with pytest.raises(EngineClosed, match="closed"):
            use(llm)
        assert llm.budget.committed_bytes == 0, name
    with pytest.raises(EngineClosed):
        AsyncLLM(llm)
    assert [delta.finish_reason for delta in stream] == ["abort"]
    llm.close()


async def end_of_stream(engine: AsyncLLM, llm: LLM) -> str | None:
    """What a stream says whose LLM is closed by somebody else."""
    reasons = []
    async for delta in engine.stream("x", SamplingParams(max_tokens=None, ignore_eos=True)):
        llm.close()
        reasons.append(delta.finish_reason)
    return reasons[-1]


def test_an_async_llm_notices_that_its_llm_was_closed(folder: Path) -> None:
    import asyncio

    async def run() -> None:
        llm = open_llm(folder)
        engine = AsyncLLM(llm)
        await engine.start()
        assert await end_of_stream(engine, llm) == "abort"
        with pytest.raises(EngineClosed):
            await engine.generate("x")
        await engine.close()

    asyncio.run(asyncio.wait_for(run(), 60))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_is_refused_and_a_spawned_one_is_not(folder: Path) -> None:
    """In a process of its own, for the test's may hold threads that do not like to be forked."""
    code = f"""
import multiprocessing, os, sys
from elastikv import LLM, EngineClosed, SamplingParams
from elastikv.engine import forks

def tokens(llm):
    return llm.generate("x", SamplingParams(temperature=0, max_tokens=3))[0].token_ids

def use(llm):
    uses = [lambda: llm.generate("x"), lambda: next(llm.stream("x")), lambda: llm.stats(), lambda: LLM({str(folder)!r})]
    for each in uses:
        try:
            each()
            return 1
        except EngineClosed as error:
            assert "spawn" in str(error)
    llm.close()
    return 0

if __name__ == "__main__":
    if os.fork() == 0:
        with LLM({str(folder)!r}, n_ctx=64) as llm:  # a fork before the first LLM is none to complain about
            tokens(llm)
        os._exit(0)
    assert os.wait()[1] == 0
    with LLM({str(folder)!r}, n_ctx=64) as llm:
        before = tokens(llm)
        if (pid := os.fork()) == 0:
            os._exit(use(llm))
        assert os.waitpid(pid, 0)[1] == 0
        assert tokens(llm) == before
    print("good")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "good", done.stderr
