"""AsyncLLM: one worker thread, many callers; nothing they do ends the service."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from support.tiny_models import tiny_model

from elastikv import LLM, AsyncLLM, SamplingParams, SchedulerOptions
from elastikv.errors import (
    CacheFull,
    ElastikvError,
    EngineClosed,
    GenerationCut,
    InvalidRequest,
    PromptTooLong,
    QueueFull,
    SnapshotError,
)

ENDLESS = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)


def greedy(n: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=n)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("qwen3_5", tmp_path_factory.mktemp("model"))


@asynccontextmanager
async def running(folder: Path, *, n_ctx: int = 4096, **options: object) -> AsyncIterator[AsyncLLM]:
    with LLM(
        folder,
        n_ctx=n_ctx,
        kv_dtype="f32",
        kernels="reference",
        n_batch=64,
        n_ubatch=16,
        scheduler=SchedulerOptions(**options),  # type: ignore[arg-type]
    ) as llm:
        engine = AsyncLLM(llm)
        await engine.start()
        try:
            yield engine
        finally:
            await engine.close()
            llm.memory.check()


def asyncio_test(body: Callable[[Path], Awaitable[None]]) -> Callable[[Path], None]:
    """Run an async test, and fail it if it hangs."""

    def test(folder: Path) -> None:
        asyncio.run(asyncio.wait_for(body(folder), timeout=60))

    test.__name__, test.__doc__ = body.__name__, body.__doc__
    return test


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    while not await condition():
        await asyncio.sleep(0.005)


@asyncio_test
async def test_requests_at_once_say_what_each_says_alone(folder: Path) -> None:
    prompts = [f"story {i} " * (1 + i % 5) for i in range(16)]
    async with running(folder) as engine:
        alone = [(await engine.generate(prompt, greedy(12))).token_ids for prompt in prompts]
    async with running(folder) as engine:
        together = await asyncio.gather(*(engine.generate(prompt, greedy(12)) for prompt in prompts))
        stats = await engine.stats()
    assert [output.token_ids for output in together] == alone
    assert stats.totals.tokens_generated == 16 * 12
    assert stats.n_running == stats.n_waiting == 0


@asyncio_test
async def test_deltas_come_while_it_generates(folder: Path) -> None:
    async with running(folder) as engine:
        pieces, output = [], None
        async for delta in engine.stream("Once", greedy(20)):
            assert output is None, "nothing follows the output"
            pieces.append(delta.text)
            output = delta.output
        assert output is not None
        assert "".join(pieces) == output.text
        assert len(pieces) == 20


@asyncio_test
async def test_closing_the_iterator_ends_the_generation(folder: Path) -> None:
    async with running(folder) as engine:
        async with aclosing(engine.stream("Once", ENDLESS)) as stream:
            delta = await anext(stream)
            assert [(session.id, session.state) for session in await engine.sessions()] == [(delta.session, "running")]
        n_generated = (await engine.stats()).totals.tokens_generated
        stats = await engine.stats()
        assert stats.n_running == 0
        assert stats.n_idle == 1
        assert stats.totals.tokens_generated - n_generated <= 1


@asyncio_test
async def test_cancelling_a_waiting_task_takes_its_request_out_of_the_queue(folder: Path) -> None:
    async with running(folder, n_parallel=1) as engine:
        first = asyncio.create_task(engine.generate("a", ENDLESS))
        second = asyncio.create_task(engine.generate("b", ENDLESS))

        async def one_waits() -> bool:
            return (await engine.stats()).n_waiting == 1

        await until(one_waits)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert (await engine.stats()).n_waiting == 0
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await engine.stats()).n_running == 0


@asyncio_test
async def test_refusals_come_before_the_first_delta(folder: Path) -> None:
    async with running(folder, n_ctx=64, n_parallel=1, max_queue=1) as engine:
        with pytest.raises(PromptTooLong):
            await engine.generate([5] * 65)
        with pytest.raises(InvalidRequest, match="empty"):
            await engine.generate([])
        await engine.set_budget("1MiB")
        await engine.set_budget(engine.llm.budget.compute_bytes + 4096)
        with pytest.raises(CacheFull):
            await engine.generate([5] * 64)
        await engine.set_budget("none")
    async with running(folder, n_parallel=1, max_queue=1) as engine:
        tasks = [asyncio.create_task(engine.generate("a", ENDLESS))]

        async def first_runs() -> bool:
            return (await engine.stats()).n_running == 1

        await until(first_runs)
        tasks.append(asyncio.create_task(engine.generate("b", ENDLESS)))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull):
            await engine.generate("c", ENDLESS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asyncio_test
async def test_a_cut_is_raised_after_the_deltas(folder: Path) -> None:
    async with running(folder) as engine:
        await engine.generate([5] * 200, greedy(1))
        stats = (await engine.stats()).memory
        await engine.set_budget(stats.committed_bytes + stats.compute_bytes + 8192)
        tokens: list[int] = []

        async def read() -> None:
            async for delta in engine.stream([5] * 200, ENDLESS):
                tokens.extend(delta.token_ids)

        with pytest.raises(GenerationCut) as caught:
            await read()
        assert caught.value.output.token_ids == tokens


@asyncio_test
async def test_a_step_that_fails_ends_its_requests_and_not_the_service(folder: Path) -> None:
    async with running(folder) as engine:
        expected = (await engine.generate("Once", greedy(5))).token_ids
        forward = engine.llm.model.forward

        def fail(*arguments: object) -> None:
            raise ZeroDivisionError("a bug")

        engine.llm.model.forward = fail  # type: ignore[method-assign,assignment]
        with pytest.raises(ZeroDivisionError):
            await engine.generate("another", greedy(5))
        engine.llm.model.forward = forward  # type: ignore[method-assign]
        assert (await engine.generate("Once", greedy(5))).token_ids == expected


@asyncio_test
async def test_memory_can_be_changed_while_it_runs(folder: Path) -> None:
    async with running(folder) as engine:
        output = await engine.generate("Once", greedy(5))
        await engine.resize(1024)
        (session,) = await engine.sessions()
        assert session.capacity_cells == 1024
        assert session.state == "idle"
        assert session.used_cells == output.prompt_tokens + 4
        with pytest.raises(InvalidRequest):
            await engine.resize(1)
        assert await engine.shrink() > 0
        with pytest.raises(InvalidRequest):
            await engine.set_budget("a lot")
        kinds = [event.kind for event in engine.events()]
        assert kinds.count("resize") >= 3
        assert engine.events(engine.events()[-1].number) == []


@asyncio_test
async def test_sessions_are_saved_restored_and_erased(folder: Path) -> None:
    path = folder.parent / "session.safetensors"
    async with running(folder) as engine:
        output = await engine.generate("Once upon a time there was a cache", greedy(5))
        (session,) = await engine.sessions()
        await engine.save_session(session.id, path)
        await engine.erase_session(session.id)
        assert await engine.sessions() == []
        with pytest.raises(InvalidRequest, match="no session"):
            await engine.save_session(session.id, path)
        restored = await engine.restore_session(path)
        assert [session.id for session in await engine.sessions()] == [restored]
        prompt = engine.llm.tokenizer.encode("Once upon a time there was a cache")
        again = await engine.generate([*prompt, *output.token_ids], greedy(2))
        assert again.cached_tokens == len(prompt) + 4
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(SnapshotError):
            await engine.restore_session(path)


@asyncio_test
async def test_closing_lets_requests_finish_in_time_and_ends_the_others(folder: Path) -> None:
    async with running(folder, n_parallel=4) as engine:
        short = asyncio.create_task(engine.generate("a", greedy(10)))
        endless = asyncio.create_task(engine.generate("b", ENDLESS))

        async def both_run() -> bool:
            return (await engine.stats()).n_running == 2

        await until(both_run)
        closing = asyncio.create_task(engine.close(drain_seconds=1.0))
        await asyncio.sleep(0.01)
        with pytest.raises(EngineClosed):
            await engine.generate("c", greedy(1))
        assert (await short).finish_reason == "length"
        with pytest.raises(GenerationCut, match="shutting down") as caught:
            await endless
        assert len(caught.value.output.token_ids) > 10
        await closing
        with pytest.raises(EngineClosed):
            await engine.stats()
        assert not any(thread.name == "elastikv-worker" for thread in threading.enumerate())


@asyncio_test
async def test_draining_refuses_at_once_what_waits(folder: Path) -> None:
    async with running(folder, n_parallel=1) as engine:
        first = asyncio.create_task(engine.generate("a", ENDLESS))

        async def one_runs() -> bool:
            return (await engine.stats()).n_running == 1

        await until(one_runs)
        second = asyncio.create_task(engine.generate("b", ENDLESS))

        async def one_waits() -> bool:
            return (await engine.stats()).n_waiting == 1

        await until(one_waits)
        draining = asyncio.create_task(engine.drain(60))
        with pytest.raises(EngineClosed):
            await second
        assert not first.done()
        first.cancel()
        await draining
        assert not (await engine.stats()).n_running


@asyncio_test
async def test_sessions_are_parked_at_the_close_and_found_at_the_next_start(folder: Path) -> None:
    park_dir = folder.parent / "parked"
    async with running(folder, park_dir=park_dir) as engine:
        output = await engine.generate("Once upon a time there was a cache", greedy(5))
    assert len(list(park_dir.glob("*.safetensors"))) == 1
    async with running(folder, park_dir=park_dir) as engine:
        assert [session.state for session in await engine.sessions()] == ["parked"]
        prompt = engine.llm.tokenizer.encode("Once upon a time there was a cache")
        again = await engine.generate([*prompt, *output.token_ids], greedy(2))
        assert again.cached_tokens == len(prompt) + 4


@asyncio_test
async def test_idle_sessions_leave_although_nobody_calls(folder: Path) -> None:
    async with running(folder, idle_drop_seconds=0.05) as engine:
        await engine.generate("Once", greedy(3))
        deadline = asyncio.get_running_loop().time() + 20
        while engine.llm.memory.stats().committed_bytes:
            await asyncio.sleep(0.02)
            assert asyncio.get_running_loop().time() < deadline


@asyncio_test
async def test_it_is_started_once_and_before_it_is_used(folder: Path) -> None:
    with LLM(folder, n_ctx=64, kernels="reference") as llm:
        engine = AsyncLLM(llm)
        with pytest.raises(ElastikvError, match="start"):
            await engine.generate("a")
        await engine.close()
        engine = AsyncLLM(llm)
        await engine.start()
        with pytest.raises(ElastikvError, match="already"):
            await engine.start()
        await engine.close()
