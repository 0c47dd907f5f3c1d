from __future__ import annotations

import random

import pytest

from elastikv.integrations.ray.prefixes import marks_of
from elastikv.integrations.ray.routing import Load, Routes

IDLE = {"a": Load(0, 4), "b": Load(0, 4), "c": Load(0, 4)}
PROMPT = marks_of("system prompt " * 50)
TALK = marks_of("system prompt " * 50 + "and what was said " * 200)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def routes(clock: Clock) -> Routes[str]:
    return Routes(clock=clock)


def test_who_holds_the_longest_beginning_is_first(routes: Routes[str]) -> None:
    routes.report("b", PROMPT)
    assert routes.choose(TALK, IDLE)[0] == "b"
    routes.report("c", list(TALK)[:-2])
    assert routes.choose(TALK, IDLE)[0] == "c"
    routes.report("c", ())
    assert routes.choose(TALK, IDLE)[0] == "b"


def test_who_holds_the_session_comes_before_who_holds_the_text(routes: Routes[str]) -> None:
    routes.report("b", TALK)
    routes.report("c", [7])
    assert routes.choose(TALK, IDLE, session=7)[0] == "c"
    assert routes.choose(TALK, IDLE, session=8)[0] == "b"


def test_a_session_that_nobody_holds_goes_where_the_ring_says(routes: Routes[str]) -> None:
    assert routes.choose(TALK, IDLE, session=7, ring=["c", "b"])[0] == "c"
    assert routes.choose(TALK, {**IDLE, "c": Load(9, 4)}, session=7, ring=["gone", "c", "b"])[0] == "b"


def test_otherwise_who_has_least_to_do(routes: Routes[str]) -> None:
    loads = {"a": Load(3, 4, 0.1), "b": Load(1, 4, 0.9), "c": Load(2, 4, 0.2), "d": Load(9, 4)}
    assert routes.choose(PROMPT, loads) == ["c", "a", "b"]
    assert routes.choose(PROMPT, {}) == []


def test_requests_do_not_pile_up_where_the_cells_are(routes: Routes[str]) -> None:
    routes.report("a", TALK)
    loads = dict(IDLE)
    for _ in range(60):
        name = routes.choose(TALK, loads)[0]
        loads[name] = Load(loads[name].n_requests + 1, 4)
    counts = sorted(load.n_requests for load in loads.values())
    assert counts[-1] <= 1.5 * 20 + 1
    assert loads["a"].n_requests == counts[-1]


def test_a_full_replica_keeps_its_talks_and_takes_no_new_ones(routes: Routes[str]) -> None:
    routes.report("a", TALK)
    loads = {"a": Load(0, 4, 0.95), "b": Load(0, 4, 0.9)}
    assert routes.choose(TALK, loads)[0] == "a"
    new = marks_of("system prompt " * 50 + "something else " * 400)
    assert routes.choose(new, loads)[0] == "b"
    assert routes.choose(new, {"a": Load(0, 4, 0.5), "b": Load(0, 4, 0.4)})[0] == "a"
    assert routes.choose(new, {"a": Load(0, 4, 0.5), "b": Load(0, 4, 0.0)})[0] == "a"
    assert routes.choose(new, {"a": Load(0, 4, 0.6), "b": Load(0, 4, 0.0)})[0] == "b"


def test_what_was_sent_counts_until_reports_can_have_come(routes: Routes[str], clock: Clock) -> None:
    routes.sent("b", PROMPT)
    clock.now = 29
    assert routes.choose(TALK, IDLE)[0] == "b"
    clock.now = 30
    assert routes.choose(TALK, IDLE)[0] == "a"


def test_nothing_is_left_of_replicas_that_have_gone(routes: Routes[str], clock: Clock) -> None:
    draw = random.Random(1)
    names = [f"replica {i}" for i in range(5)]
    for _ in range(200):
        name, marks = draw.choice(names), marks_of(draw.choice("xyz") * draw.randrange(2000))
        (routes.sent if draw.random() < 0.5 else routes.report)(name, marks)
        clock.now += draw.random() * 10
        routes.choose(marks, {name: Load(0) for name in names})
    routes.keep(())
    clock.now += 30
    routes.choose({}, IDLE)
    assert not routes._holders
    assert not routes._sent
    assert not routes._reported
