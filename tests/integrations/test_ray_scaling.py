from __future__ import annotations

from elastikv.engine.stats import SessionInfo
from elastikv.integrations.ray.scaling import Need, replicas_wanted, working_set_bytes


def test_working_sets_are_spread_until_each_fits_well() -> None:
    assert replicas_wanted([Need(0.7, 0, 0, 0)]) == 1
    assert replicas_wanted([Need(0.71, 0, 0, 0)]) == 2
    assert replicas_wanted([Need(1, 0, 0, 0)] * 4) == 6
    assert replicas_wanted([Need(0.5, 0, 0, 0), Need(0.1, 0, 0, 0), Need(0.1, 0, 0, 0)]) == 1
    assert replicas_wanted([Need(0, 0, 0, 0)] * 3) == 0


def test_the_number_that_is_wanted_stays_once_it_is_reached() -> None:
    for total in (0.3, 0.7, 1.0, 2.5, 6.9):
        n = replicas_wanted([Need(total, 0, 0, 0)])
        assert replicas_wanted([Need(total / n, 0, 0, 0)] * n) == n


def test_requests_that_wait_want_more() -> None:
    assert replicas_wanted([Need(0.1, 0, 1, 0)] * 2) == 3
    assert replicas_wanted([Need(0.1, 0, 6, 0)] * 2, n_parallel=4) == 5
    assert replicas_wanted([Need(0.1, 0, 0.2, 0)] * 2) == 1


def test_what_runs_keeps_its_replicas_however_little_it_holds() -> None:
    assert replicas_wanted([Need(0.01, 4, 0, 0)] * 5, n_parallel=4) == 5
    assert replicas_wanted([Need(0.01, 1, 0, 0)] * 5, n_parallel=4) == 2


def test_a_refused_growth_wants_one_more() -> None:
    assert replicas_wanted([Need(0.1, 0, 0, 1), Need(0.1, 0, 0, 0)]) == 3
    assert replicas_wanted([Need(0.1, 0, 0, 0.1), Need(0.1, 0, 0, 0)]) == 1


def test_a_working_set_is_what_runs_or_was_used_of_late() -> None:
    def session(state: str, last_used: float, n_bytes: int) -> SessionInfo:
        return SessionInfo(0, state, 0, 0, n_bytes, 0, 0, last_used)

    sessions = [session("running", 0, 1), session("idle", 95, 10), session("idle", 80, 100), session("parked", 99, 0)]
    assert working_set_bytes(sessions, now=100, seconds=10) == 11
