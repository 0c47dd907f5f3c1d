"""Which cells a request starts from: pure decisions, and what a scheduler makes of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.history_model import expected_tokens, greedy

from elastikv.engine.sessions.prefix import common_prefix

HYBRID = pytest.mark.parametrize("is_hybrid", [False, True])
SYSTEM = list(range(100, 160))


def run(rig, prompt: list[int], n: int = 8):
    """One request, run to its end; its text is what it must be."""
    request = rig.scheduler.submit(prompt, greedy(n))
    rig.run(request)
    output = request.output(0.0)
    assert output.token_ids == expected_tokens(prompt, n)
    return output


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_prefix_of_short_lists(a: list[int], b: list[int]) -> None:
    n = common_prefix(a, b)
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]


@pytest.mark.parametrize("at", [0, 1, 511, 512, 513, 1500, 1999])
def test_common_prefix_of_long_lists(at: int) -> None:
    a = list(range(2000))
    b = [*a[:at], -1, *a[at + 1 :]]
    assert common_prefix(a, b) == at
    assert common_prefix(a, a[:at]) == at


@HYBRID
def test_the_next_turn_continues_in_place(rig, is_hybrid: bool) -> None:
    r = rig(is_hybrid=is_hybrid)
    first = run(r, SYSTEM)
    computed = r.model.n_computed
    turn = [*SYSTEM, *first.token_ids, 7, 8, 9]
    second = run(r, turn)
    # The last token of the first reply was never computed; all before it are.
    assert second.cached_tokens == len(SYSTEM) + 7
    assert r.model.n_computed - computed == 4 + 7
    assert [session.id for session in r.scheduler.sessions()] == [0]


@HYBRID
def test_the_same_prompt_again_computes_one_token_of_it(rig, is_hybrid: bool) -> None:
    r = rig(is_hybrid=is_hybrid)
    run(r, SYSTEM)
    assert run(r, SYSTEM).cached_tokens == len(SYSTEM) - 1
    assert len(r.scheduler.sessions()) == 1


@HYBRID
def test_a_reply_that_was_rewritten_costs_only_itself(rig, is_hybrid: bool) -> None:
    r = rig(is_hybrid=is_hybrid)
    run(r, SYSTEM)
    again = run(r, [*SYSTEM, 5, 5, 5, 6])
    assert again.cached_tokens >= len(SYSTEM) - 1
    assert len(r.scheduler.sessions()) == 1


def test_a_shared_system_prompt_is_copied_and_its_owner_keeps_its_cells(rig) -> None:
    r = rig()
    first = run(r, [*SYSTEM, 1, 2, 3])
    other = run(r, [*SYSTEM, 4, 5, 6, 7])
    assert other.cached_tokens == len(SYSTEM)
    again = run(r, [*SYSTEM, 1, 2, 3, *first.token_ids, 9])
    assert again.cached_tokens == len(SYSTEM) + 3 + 7
    assert len(r.scheduler.sessions()) == 2


def test_a_hybrid_copies_where_it_has_a_checkpoint(rig) -> None:
    """Its own prompt's end is one; the middle of a prompt is not."""
    r = rig(is_hybrid=True)
    run(r, SYSTEM)
    assert run(r, [*SYSTEM, 4, 5, 6, 7]).cached_tokens >= len(SYSTEM) - 1
    assert run(r, [*SYSTEM[:50], 4, 5, 6, 7]).cached_tokens == 0


def test_a_short_common_start_is_not_worth_a_copy(rig) -> None:
    r = rig()
    run(r, [1, 2, 3, 4, 5])
    assert run(r, [1, 2, 3, 9]).cached_tokens == 0


def test_a_copy_that_finds_no_room_is_computed_instead(rig) -> None:
    r = rig(budget=96 * 512 + 200, n_parallel=2)
    run(r, [*SYSTEM, 1, 2, 3])
    assert run(r, [*SYSTEM, 4, 5, 6]).token_ids == expected_tokens([*SYSTEM, 4, 5, 6], 8)


@HYBRID
def test_the_same_prompt_at_once_is_computed_once(rig, is_hybrid: bool) -> None:
    r = rig(is_hybrid=is_hybrid)
    requests = [r.scheduler.submit(SYSTEM, greedy(5)) for _ in range(3)]
    r.run(*requests)
    assert [request.cached_tokens for request in requests] == [0, len(SYSTEM) - 1, len(SYSTEM) - 1]
    assert all(request.output(0).token_ids == expected_tokens(SYSTEM, 5) for request in requests)


def test_reuse_can_be_switched_off(rig) -> None:
    r = rig(prefix_reuse=False)
    run(r, SYSTEM)
    assert r.memory.seq_ids() == []
    assert run(r, SYSTEM).cached_tokens == 0


def test_cells_that_were_cleared_behind_its_back_are_computed_again(rig) -> None:
    r = rig()
    run(r, SYSTEM)
    r.memory.clear()
    assert run(r, SYSTEM).cached_tokens == 0
