"""Several models under one budget: who makes way for whom, and that every text is what it would be alone."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path

import pytest
from support.history_model import BYTES_PER_CELL, Rig, assert_right, greedy, prompt
from support.interrupts import every_line
from support.tiny_models import tiny_model

from elastikv import LLM, SharedBudget
from elastikv.batch import Batch, SeqTokens
from elastikv.errors import GenerationCut, InvalidRequest


def assert_whole(*requests) -> None:
    assert all(request.error is None for request in requests)
    assert_right(*requests)


def take_turns(rigs: list[Rig], *requests, n_steps: int = 2000) -> None:
    """Step the models one after the other until all has ended, with the memory checked and the budget kept."""
    limit = rigs[0].budget.limit_bytes
    for _ in range(n_steps):
        if all(request.finished for request in requests):
            return
        for each in rigs:
            each.scheduler.step()
            each.memory.check()
            assert rigs[0].budget.kv_bytes == sum(other.memory.stats().committed_bytes for other in rigs)
            assert rigs[0].budget.committed_bytes <= limit
    raise AssertionError("requests did not finish")


def two(rig, n_cells: int, **options) -> tuple[Rig, Rig]:
    shared = SharedBudget(n_cells * BYTES_PER_CELL)
    return rig(budget=shared, **options), rig(budget=shared, **options)


def test_a_busy_model_grows_into_what_an_idle_one_gives_back(rig) -> None:
    a, b = two(rig, 160)
    first = a.scheduler.submit(prompt(1, 100), greedy(4))
    take_turns([a, b], first)
    assert a.scheduler.stats().n_idle == 1
    second = b.scheduler.submit(prompt(2, 100), greedy(20))
    take_turns([a, b], second)
    assert_whole(first, second)
    assert a.kinds() == ["release"], "the idle session went"
    assert "preempt" not in b.kinds()
    assert b.memory.stats().used_cells == 119


def test_spare_capacity_goes_before_any_session(rig) -> None:
    a, b = two(rig, 200, growth="step:64")
    first = a.scheduler.submit(prompt(1, 65), greedy(1))  # 128 cells for 65
    take_turns([a, b], first)
    second = b.scheduler.submit(prompt(2, 90), greedy(1))
    take_turns([a, b], second)
    assert a.scheduler.stats().n_idle == 1
    assert a.memory.stats().capacity_cells < 128
    assert_whole(first, second)


def test_the_longest_unused_session_of_any_model_goes_first(rig) -> None:
    a, b = two(rig, 200)
    for seconds, (each, seed) in enumerate([(a, 1), (b, 2), (a, 3)]):
        a.clock.now = b.clock.now = float(seconds)
        take_turns([a, b], each.scheduler.submit(prompt(seed, 50), greedy(1)))
    take_turns([a, b], b.scheduler.submit(prompt(4, 60), greedy(1)))
    assert [len(session.token_ids) for session in a.scheduler.store.idle()] == [50]
    assert next(iter(a.scheduler.store.idle())).token_ids == prompt(3, 50)
    assert len(b.scheduler.store.idle()) == 2


@pytest.mark.parametrize("storage", ["mmap", "copy"])
def test_one_that_is_refused_waits_while_the_other_runs(rig, storage: str) -> None:
    """Both want more than half of all: neither is cut, and what waits is computed once there is room."""
    a, b = two(rig, 160 if storage == "mmap" else 260, storage=storage)
    requests = [each.scheduler.submit(prompt(seed, 60), greedy(50)) for seed, each in enumerate((a, b))]
    take_turns([a, b], *requests)
    assert_whole(*requests)
    assert "preempt" in a.kinds() + b.kinds()


def test_many_of_each_finish(rig, tmp_path: Path) -> None:
    a, b = two(rig, 220, park_dir=tmp_path)
    requests = [each.scheduler.submit(prompt(seed, 20 + 7 * seed), greedy(30)) for seed in range(6) for each in (a, b)]
    take_turns([a, b], *requests)
    assert_whole(*requests)


def test_what_is_alone_and_has_everything_is_cut(rig) -> None:
    a, b = two(rig, 80)
    request = a.scheduler.submit(prompt(1, 60), greedy(100))
    take_turns([a, b], request)
    assert isinstance(request.error, GenerationCut)


def test_a_model_nobody_uses_is_asked_to_go_before_a_text_is_cut(rig) -> None:
    a, b = two(rig, 100)
    asked = []
    a.shared.unload = lambda: not asked.append(a.scheduler.stats().n_running)
    b.engine.decode(Batch([SeqTokens(0, prompt(9, 40))]))  # of no session: nobody may take it
    request = a.scheduler.submit(prompt(1, 50), greedy(30))
    for _ in range(100):
        a.scheduler.step()
    a.shared.memory_returned()  # somebody else's: what was begun goes on
    for _ in range(3):
        a.scheduler.step()
    assert asked == [1], "once"
    assert not request.finished
    assert not a.scheduler.step(), "nothing to compute until memory returns"
    b.memory.seq_rm(0)
    a.shared.unload_ended()
    take_turns([a, b], request)
    assert_whole(request)


def test_an_unload_may_have_ended_before_it_is_known_to_have_begun(rig) -> None:
    """It ends in another thread: a request that went on waiting for it would wait for ever."""
    a, b = two(rig, 80)

    def unload() -> bool:
        a.shared.unload = None
        a.shared.unload_ended()
        return True

    a.shared.unload = unload
    request = a.scheduler.submit(prompt(1, 60), greedy(100))
    take_turns([a, b], request)
    assert isinstance(request.error, GenerationCut)


def test_nobody_to_unload_is_no_reason_to_wait(rig) -> None:
    a, b = two(rig, 80)
    a.shared.unload = lambda: False
    request = a.scheduler.submit(prompt(1, 60), greedy(100))
    take_turns([a, b], request)
    assert isinstance(request.error, GenerationCut)


def test_a_closed_model_is_asked_for_nothing(rig) -> None:
    a, b = two(rig, 100)
    take_turns([a, b], b.scheduler.submit(prompt(1, 50), greedy(1)))
    b.close()
    request = a.scheduler.submit(prompt(2, 80), greedy(10))
    take_turns([a], request)
    assert_whole(request)


def test_a_step_of_another_that_fails_is_that_ones_affair(rig) -> None:
    a, b = two(rig, 100)
    request = b.scheduler.submit(prompt(1, 5), greedy(5))

    def fail(ubatch) -> None:
        raise ZeroDivisionError

    b.model.before_forward = fail
    assert not a.shared.step_others(a.scheduler.store)
    assert isinstance(request.error, ZeroDivisionError)


def test_interrupted_anywhere_a_neighbour_goes_on(rig) -> None:
    """Ctrl-C in one model's step; the other then needs the memory of it."""
    made: list[Rig] = []

    def make():
        made[:] = two(rig, 160)
        a, b = made
        take_turns(made, a.scheduler.submit(prompt(1, 70), greedy(1)))
        a.scheduler.submit(prompt(3, 40), greedy(4))
        b.scheduler.submit(prompt(2, 60), greedy(8))
        return a.scheduler.step

    for _ in every_line(make, step=5):
        a, b = made
        while b.scheduler.has_work or a.scheduler.has_work:
            b.scheduler.step()
            a.scheduler.step()
        a.memory.rollback()


# With threads, and with models


def test_llms_share_a_budget_and_say_what_they_say_alone(tmp_path: Path) -> None:
    paths = [tiny_model(arch, tmp_path / arch) for arch in ("llama", "qwen3_5")]
    options = {"n_ctx": 512, "kernels": "reference", "kv_growth": "exact", "n_ubatch": 64}
    prompts = [prompt(seed, 40) for seed in range(6)]
    expected, n_bytes = [], 0
    for path in paths:
        with LLM(path, **options) as llm:
            expected.append([output.token_ids for output in llm.generate(prompts, greedy(40))])
            n_bytes += llm.budget.compute_bytes + 2 * llm.cost.n_bytes(80)
    shared = SharedBudget(n_bytes)
    said: dict[int, list[list[int]]] = {}

    def ask(n: int, llm: LLM) -> None:
        said[n] = [output.token_ids for output in llm.generate(prompts, greedy(40))]

    with LLM(paths[0], kv_budget=shared, **options) as a, LLM(paths[1], kv_budget=shared, **options) as b:
        threads = [threading.Thread(target=ask, args=(n, llm)) for n, llm in enumerate((a, b))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert a.budget is b.budget
        assert shared.budget.peak_bytes <= n_bytes
    assert [said[0], said[1]] == expected


def test_one_thread_may_use_two_that_wait_for_each_other(tmp_path: Path) -> None:
    """The text of one is read half way, and the other needs its memory: its rest is computed meanwhile."""
    path = tiny_model("llama", tmp_path)
    options = {"n_ctx": 512, "kernels": "reference", "kv_growth": "exact", "n_ubatch": 64}
    with LLM(path, **options) as probe:
        probe.generate([prompt(1, 300)], greedy(40))
        n_bytes = 2 * probe.budget.compute_bytes + probe.cost.n_bytes(340)
    shared = SharedBudget(n_bytes)
    with LLM(path, kv_budget=shared, **options) as a, LLM(path, kv_budget=shared, **options) as b:
        reading = a.stream(prompt(1, 300), greedy(40))
        next(reading)
        (output,) = b.generate([prompt(2, 300)], greedy(10))
        assert len(output.token_ids) == 10
        assert sum(len(delta.token_ids) for delta in reading) == 39


def test_a_model_that_is_loaded_takes_what_idle_sessions_hold(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path)
    options = {"n_ctx": 512, "kernels": "reference", "n_ubatch": 64}
    with LLM(path, **options) as probe:
        n_bytes = 2 * probe.budget.compute_bytes + probe.cost.n_bytes(256)
    shared = SharedBudget(n_bytes)
    with LLM(path, kv_budget=shared, **options) as a:
        a.generate([prompt(1, 400)], greedy(1))
        assert shared.budget.left() < shared.budget.compute_bytes
        with LLM(path, kv_budget=shared, **options) as b:
            assert a.memory.stats().used_cells == 0
            assert len(b.generate([prompt(1, 100)], greedy(5))[0].token_ids) == 5


def test_an_llm_that_is_not_closed_is_freed(tmp_path: Path) -> None:
    shared = SharedBudget()
    llm = LLM(tiny_model("llama", tmp_path), kv_budget=shared, kernels="reference")
    gone = weakref.ref(llm.scheduler)
    del llm
    gc.collect()
    assert gone() is None


def test_a_shared_budget_is_checked_like_any() -> None:
    with pytest.raises(InvalidRequest, match="budget"):
        SharedBudget(-1)
