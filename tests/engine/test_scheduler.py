"""Many requests on one memory: order, refusals, preemption, and that every text is what it would be alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.history_model import BYTES_PER_CELL, Rig, assert_right, greedy, prompt

from elastikv.engine.params import SamplingParams
from elastikv.errors import CacheFull, EngineClosed, GenerationCut, InvalidRequest, PromptTooLong, QueueFull

HYBRID = pytest.mark.parametrize("is_hybrid", [False, True])


@HYBRID
def test_together_they_say_what_each_says_alone(rig, is_hybrid: bool) -> None:
    r = rig(is_hybrid=is_hybrid)
    requests = [r.scheduler.submit(prompt(i, 5 + 17 * i), greedy(10 + i)) for i in range(7)]
    r.run(*requests)
    assert [request.n_generated for request in requests] == list(range(10, 17))
    assert_right(*requests)


def test_no_more_run_than_allowed_and_the_rest_wait_in_order(rig) -> None:
    r = rig(n_parallel=2)
    requests = [r.scheduler.submit(prompt(i, 5), greedy(4 + i)) for i in range(5)]
    finished = []
    while len(finished) < 5:
        r.scheduler.step()
        stats = r.scheduler.stats()
        assert stats.n_running + stats.n_waiting + len([request for request in requests if request.finished]) == 5
        assert stats.n_running <= 2
        finished += [request for request in requests if request.finished and request not in finished]
    assert finished == requests


def test_a_long_prompt_does_not_stall_the_others(rig) -> None:
    r = rig(n_batch=256, n_ubatch=16)
    short = r.scheduler.submit(prompt(1, 5), greedy(60))
    r.scheduler.step()
    long = r.scheduler.submit(prompt(2, 400), greedy(3))
    r.model.largest_ubatch = 0
    while not short.finished:
        before, computed = short.n_generated, r.model.n_computed
        r.scheduler.step()
        assert short.n_generated == before + 1, "every step brings a token"
        assert r.model.n_computed - computed <= 16
    r.run(long)
    assert_right(short, long)


def test_a_full_queue_refuses_and_says_when_to_come_back(rig) -> None:
    r = rig(n_parallel=1, max_queue=2)
    requests = [r.scheduler.submit(prompt(0, 3), greedy(3)) for _ in range(2)]
    with pytest.raises(QueueFull) as caught:
        r.scheduler.submit(prompt(0, 3), greedy(3))
    assert caught.value.n_waiting == 2
    assert caught.value.retry_after >= 1
    r.run(*requests)


@pytest.mark.parametrize("bad", [[], [384], [-1]])
def test_impossible_tokens_are_refused(rig, bad: list[int]) -> None:
    with pytest.raises(InvalidRequest):
        rig().scheduler.submit(bad, greedy(1))


def test_a_bias_for_a_token_that_is_none_is_refused(rig) -> None:
    with pytest.raises(InvalidRequest, match="384"):
        rig().scheduler.submit([1], SamplingParams(logit_bias={384: 1.0}))


def test_a_prompt_longer_than_n_ctx_is_refused_with_both_numbers(rig) -> None:
    with pytest.raises(PromptTooLong) as caught:
        rig(n_ctx=32).scheduler.submit(prompt(0, 33), greedy(1))
    assert (caught.value.n_prompt_tokens, caught.value.n_ctx) == (33, 32)


def test_what_could_never_fit_is_refused_at_once(rig) -> None:
    r = rig(budget=40 * BYTES_PER_CELL)
    with pytest.raises(CacheFull, match="kv-budget"):
        r.scheduler.submit(prompt(0, 60), greedy(1))
    assert r.kinds() == ["refusal"]
    assert r.model.n_computed == 0


@HYBRID
def test_n_ctx_ends_a_generation_with_length(rig, is_hybrid: bool) -> None:
    r = rig(is_hybrid=is_hybrid, n_ctx=32)
    request = r.scheduler.submit(prompt(0, 20), greedy(None))
    r.run(request)
    assert request.finish_reason == "length"
    assert len(request.token_ids) == 32
    assert_right(request)
    full = r.scheduler.submit(prompt(1, 32), greedy(None))
    r.run(full)
    assert full.n_generated == 1
    assert_right(full)


# When memory is refused


@HYBRID
@pytest.mark.parametrize("storage", ["mmap", "copy"])
def test_a_third_of_the_memory_is_enough_for_everybody(rig, is_hybrid: bool, storage: str) -> None:
    """All would want 8 x 120 cells at once; the budget holds 2.5 of them."""
    budget = (300 if not is_hybrid else 340) * BYTES_PER_CELL + 4096 * (8 if is_hybrid else 0)
    r = rig(is_hybrid=is_hybrid, budget=budget, storage=storage, n_parallel=8)
    requests = [r.scheduler.submit(prompt(i, 40), greedy(80)) for i in range(8)]
    r.run(*requests)
    assert all(request.finish_reason == "length" for request in requests)
    assert_right(*requests)
    assert r.scheduler.stats().n_preemptions > 0
    assert r.budget.peak_bytes <= budget


def test_idle_sessions_go_first_and_the_oldest_of_them_first(rig) -> None:
    r = rig(budget=160 * BYTES_PER_CELL + 500, n_parallel=2)
    for i in range(3):
        r.clock.now += 1
        r.run(r.scheduler.submit(prompt(i, 30), greedy(2)))
    r.clock.now += 1
    request = r.scheduler.submit(prompt(9, 100), greedy(20))
    r.run(request)
    assert_right(request)
    released = [event.session for event in r.events.since(0) if event.kind == "release"]
    assert released == [0, 1, 2][: len(released)]
    assert released
    assert "preempt" not in r.kinds()


def test_the_youngest_is_preempted_and_the_oldest_never_waits(rig) -> None:
    r = rig(budget=112 * BYTES_PER_CELL + 500, n_parallel=3)
    requests = [r.scheduler.submit(prompt(i, 20), greedy(60)) for i in range(3)]
    oldest = requests[0]
    while not oldest.finished:
        before = oldest.n_generated
        r.scheduler.step()
        assert oldest.n_generated == before + 1
    preempted = [event.session for event in r.events.since(0) if event.kind == "preempt"]
    assert preempted[0] == 2
    assert 0 not in preempted
    r.run(*requests)
    assert_right(*requests)


def test_a_preempted_request_keeps_its_place_and_its_text(rig) -> None:
    r = rig(budget=64 * BYTES_PER_CELL + 500, n_parallel=2)
    first = r.scheduler.submit(prompt(0, 10), greedy(50))
    second = r.scheduler.submit(prompt(1, 10), greedy(30))
    while "preempt" not in r.kinds():
        r.scheduler.step()
    n_generated = second.n_generated
    assert n_generated > 0
    third = r.scheduler.submit(prompt(2, 10), greedy(5))
    r.run(first, second, third)
    assert_right(first, second, third)
    tokens = [token_id for delta in second.deltas for token_id in delta.token_ids]
    assert tokens == second.token_ids[second.n_prompt :], "no token is told twice or left out"


def test_one_alone_that_is_refused_is_cut_and_can_be_continued(rig) -> None:
    r = rig(budget=48 * BYTES_PER_CELL + 500)
    request = r.scheduler.submit(prompt(0, 20), greedy(200))
    r.run(request)
    assert isinstance(request.error, GenerationCut)
    output = request.error.output
    assert output.finish_reason is None
    assert len(output.token_ids) == 48 - 20 + 1
    assert_right(request)
    r.budget.set_limit("none")
    again = r.scheduler.submit(request.token_ids, greedy(10))
    r.run(again)
    assert again.cached_tokens == 48
    assert_right(again)


def test_a_cut_carries_the_cause(rig) -> None:
    r = rig(budget=48 * BYTES_PER_CELL + 500)
    request = r.scheduler.submit(prompt(0, 20), greedy(200))
    r.run(request)
    assert request.error.cause.resource == "kv-budget"
    assert "--kv-budget" in str(request.error)


def test_memory_that_the_caller_holds_can_end_a_prompt(rig) -> None:
    """It fits the budget, but not beside the caller's own sequence; nothing was generated yet."""
    from elastikv.batch import Batch, SeqTokens

    r = rig(budget=64 * BYTES_PER_CELL + 500)
    r.engine.decode(Batch([SeqTokens(0, [1] * 30)]))
    request = r.scheduler.submit(prompt(0, 40), greedy(5))
    r.run(request)
    assert isinstance(request.error, CacheFull)
    assert r.memory.seq_pos_max(0) == 29
    r.memory.seq_rm(0)


# Ends of other kinds


def test_an_aborted_request_leaves_its_cells_for_the_next_turn(rig) -> None:
    r = rig()
    request = r.scheduler.submit(prompt(0, 20), greedy(50))
    for _ in range(6):
        r.scheduler.step()
    r.scheduler.abort(request)
    r.scheduler.abort(request)
    assert request.finish_reason == "abort"
    assert [delta.finish_reason for delta in request.deltas].count("abort") == 1
    again = r.scheduler.submit([*request.token_ids, 5], greedy(3))
    r.run(again)
    assert again.cached_tokens == len(request.token_ids) - 1
    assert_right(again)


def test_what_waits_is_refused_but_not_what_has_begun(rig) -> None:
    """A preempted request waits as well, but its client has text already: it may go on, and is cut at the end."""
    r = rig(budget=64 * BYTES_PER_CELL + 500, n_parallel=2)
    first, second = (r.scheduler.submit(prompt(i, 10), greedy(50)) for i in range(2))
    while "preempt" not in r.kinds():
        r.scheduler.step()
    third = r.scheduler.submit(prompt(2, 10), greedy(5))
    r.scheduler.refuse_waiting()
    assert isinstance(third.error, EngineClosed)
    assert not first.finished
    assert not second.finished
    r.scheduler.cut_all()
    assert not r.scheduler.has_work
    for request in (first, second):
        assert isinstance(request.error, GenerationCut)
        assert request.error.output.token_ids == request.token_ids[10:]
        assert_right(request)


def test_a_waiting_request_can_be_aborted(rig) -> None:
    r = rig(n_parallel=1)
    first, second = (r.scheduler.submit(prompt(i, 5), greedy(5)) for i in range(2))
    r.scheduler.step()
    r.scheduler.abort(second)
    r.run(first, second)
    assert second.n_generated == 0
    assert not r.scheduler.has_work


def test_a_step_that_fails_ends_those_that_ran_and_nobody_else(rig) -> None:
    r = rig(n_parallel=1)
    first, second = (r.scheduler.submit(prompt(i, 5), greedy(5)) for i in range(2))

    def fail(ubatch) -> None:
        raise RuntimeError("a bug")

    r.model.before_forward = fail
    with pytest.raises(RuntimeError):
        r.scheduler.step()
    r.scheduler.fail_running(RuntimeError("a bug"))
    r.model.before_forward = lambda ubatch: None
    r.run(first, second)
    assert isinstance(first.error, RuntimeError)
    assert second.finish_reason == "length"
    assert_right(second)


@HYBRID
def test_an_interruption_between_computing_and_choosing_loses_nothing(rig, is_hybrid: bool, monkeypatch) -> None:
    r = rig(is_hybrid=is_hybrid)
    request = r.scheduler.submit(prompt(0, 50), greedy(20))
    r.scheduler.step()
    r.scheduler.step()
    with monkeypatch.context() as patch:
        patch.setattr(r.scheduler, "_sample", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            r.scheduler.step()
    r.run(request)
    assert_right(request)


# Idle sessions


def test_idle_sessions_give_back_spare_capacity_and_then_all(rig) -> None:
    r = rig(growth="step:256", idle_release_seconds=10, idle_drop_seconds=60)
    r.run(r.scheduler.submit(prompt(0, 20), greedy(2)))
    (session,) = r.scheduler.sessions()
    assert session.capacity_cells == 256
    assert r.scheduler.seconds_until_due() == 10
    r.clock.now = 10
    r.scheduler.step()
    (session,) = r.scheduler.sessions()
    assert session.capacity_cells == session.used_cells == 21
    assert r.scheduler.seconds_until_due() == 50
    r.clock.now = 59
    r.scheduler.step()
    assert len(r.scheduler.sessions()) == 1
    r.clock.now = 60
    r.scheduler.step()
    assert r.scheduler.sessions() == []
    assert r.memory.stats().committed_bytes == 0
    assert r.scheduler.seconds_until_due() is None


def test_no_more_idle_sessions_are_kept_than_allowed(rig) -> None:
    r = rig(max_idle=2)
    for i in range(4):
        r.clock.now += 1
        r.run(r.scheduler.submit(prompt(i, 20), greedy(2)))
    r.scheduler.step()
    assert [session.id for session in r.scheduler.sessions()] == [2, 3]


# Whatever happens

ACTION = st.one_of(
    st.tuples(st.just("submit"), st.integers(0, 3), st.integers(1, 90), st.integers(1, 40)),
    st.tuples(st.just("continue"), st.integers(0, 20), st.integers(1, 30), st.integers(1, 40)),
    st.tuples(st.just("abort"), st.integers(0, 20)),
    st.tuples(st.just("steps"), st.integers(1, 30)),
    st.tuples(st.just("wait"), st.integers(1, 40)),
    st.tuples(st.just("budget"), st.integers(0, 300)),
    st.tuples(st.just("shrink")),
)


@settings(max_examples=60)
@given(st.booleans(), st.integers(1, 4), st.lists(ACTION, max_size=25))
def test_whatever_happens_texts_are_right_and_the_memory_is_whole(
    is_hybrid: bool, n_parallel: int, actions: list[tuple]
) -> None:
    """Prompts share prefixes, so reuse, copies and preemptions meet; the budget goes up and down meanwhile."""
    r = Rig(
        is_hybrid=is_hybrid,
        budget=260 * BYTES_PER_CELL,
        n_ctx=200,
        n_parallel=n_parallel,
        idle_release_seconds=20,
        idle_drop_seconds=60,
    )
    requests = []
    for name, *arguments in actions:
        if name in ("submit", "continue"):
            which, n_prompt, n_generate = arguments
            start = requests[which % len(requests)].token_ids if name == "continue" and requests else prompt(which, 40)
            try:
                requests.append(r.scheduler.submit([*start, *prompt(n_prompt, n_prompt)], greedy(n_generate)))
            except (CacheFull, PromptTooLong):
                continue
        elif name == "abort" and requests:
            r.scheduler.abort(requests[arguments[0] % len(requests)])
        elif name == "steps":
            for _ in range(arguments[0]):
                r.scheduler.step()
                r.memory.check()
        elif name == "wait":
            r.clock.now += arguments[0]
        elif name == "budget":
            r.budget.set_limit((40 + arguments[0]) * BYTES_PER_CELL + 3 * 4096 * is_hybrid)
            r.scheduler.memory_changed()
        elif name == "shrink":
            r.memory.shrink_to_fit()
    r.run(*requests)
    assert_right(*requests)
    for request in requests:
        tokens = [token_id for delta in request.deltas for token_id in delta.token_ids]
        assert tokens == request.token_ids[request.n_prompt :]
        assert request.finish_reason or isinstance(request.error, (CacheFull, GenerationCut))
    r.close()
