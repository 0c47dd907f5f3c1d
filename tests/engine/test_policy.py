"""What one step computes, and what the options allow."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastikv.engine.options import SchedulerOptions
from elastikv.engine.policy import plan_step
from elastikv.errors import InvalidRequest


class Running:
    """A request as ``plan_step`` sees it."""

    def __init__(self, n_tokens: int, n_held: int, checkpoint_at: int | None = None, n_news: int = 1) -> None:
        self.token_ids = list(range(n_tokens))
        self.n_held = n_held
        self.checkpoint_at = checkpoint_at
        self.n_news = n_news
        self.session = SimpleNamespace(seq_id=0)


def plan(requests: list[Running], n_batch: int = 64, n_ubatch: int = 16) -> list[tuple[int, int, int]]:
    """``(which, start, stop)`` of every chunk."""
    chunks = plan_step(requests, lambda request: request.n_held, n_batch=n_batch, n_ubatch=n_ubatch)
    return [(requests.index(chunk.request), chunk.start, chunk.stop) for chunk in chunks]


def test_prompts_alone_fill_the_batch_in_order() -> None:
    assert plan([Running(50, 0), Running(30, 0), Running(9, 0)]) == [(0, 0, 50), (1, 0, 14)]


def test_beside_generating_ones_a_prompt_gets_what_fills_one_ubatch() -> None:
    assert plan([Running(10, 9), Running(500, 100), Running(12, 11)]) == [(0, 9, 10), (2, 11, 12), (1, 100, 114)]


def test_a_prompt_moves_on_even_if_the_others_fill_a_ubatch() -> None:
    generating = [Running(10, 9) for _ in range(20)]
    assert plan([*generating, Running(50, 0)])[-1] == (20, 0, 1)


def test_a_prompt_is_split_where_it_is_to_be_remembered() -> None:
    assert plan([Running(50, 0, checkpoint_at=49)]) == [(0, 0, 49)]
    assert plan([Running(50, 49, checkpoint_at=49)]) == [(0, 49, 50)]


def test_forced_tokens_are_no_prompt_and_leave_room_for_the_others() -> None:
    forced = Running(40, 10, n_news=30)
    assert plan([forced, Running(500, 100), Running(12, 11)]) == [(0, 10, 40), (2, 11, 12), (1, 100, 101)]
    assert plan([forced, Running(12, 11)], n_batch=8) == [(0, 10, 17), (1, 11, 12)]


@given(
    st.lists(st.tuples(st.integers(1, 200), st.integers(0, 199)), min_size=1, max_size=8),
    st.integers(8, 64),
    st.integers(1, 64),
)
def test_every_plan_is_bounded_and_leaves_no_generating_one_out(
    sizes: list[tuple[int, int]], n_batch: int, n_ubatch: int
) -> None:
    requests = [Running(n_tokens, min(n_held, n_tokens - 1)) for n_tokens, n_held in sizes]
    chunks = plan(requests, n_batch, n_ubatch)
    assert 0 < sum(stop - start for _, start, stop in chunks) <= n_batch
    assert len({which for which, _, _ in chunks}) == len(chunks)
    assert all(
        requests[which].n_held == start < stop <= len(requests[which].token_ids) for which, start, stop in chunks
    )
    generating = {i for i, request in enumerate(requests) if len(request.token_ids) - request.n_held == 1}
    assert generating <= {which for which, _, _ in chunks}


@pytest.mark.parametrize(
    "bad", [{"n_parallel": 0}, {"max_queue": 0}, {"max_idle": -1}, {"idle_drop_seconds": -1.0}, {"max_parked": 0}]
)
def test_impossible_options_are_refused_by_name(bad: dict) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(bad))):
        SchedulerOptions(**bad)
