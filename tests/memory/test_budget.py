from __future__ import annotations

import pytest

from elastikv.errors import CacheFull, InvalidRequest
from elastikv.memory import Budget
from elastikv.memory.machine import MachineMemory


def machine(available: int, total: int = 1000) -> MachineMemory:
    return MachineMemory(total, available)


def test_charges_of_both_accounts_count_against_one_limit() -> None:
    budget = Budget(1000, machine=lambda: machine(10**6))
    budget.charge(600)
    budget.charge(300, "compute")
    assert (budget.kv_bytes, budget.compute_bytes, budget.committed_bytes, budget.left()) == (600, 300, 900, 100)
    with pytest.raises(CacheFull) as refusal:
        budget.charge(101)
    error = refusal.value
    assert (error.resource, error.asked, error.left, error.limit) == ("kv-budget", 101, 100, 1000)
    assert "--kv-budget" in str(error)
    assert budget.committed_bytes == 900


def test_peak_remembers_transients() -> None:
    budget = Budget(1000, machine=lambda: machine(10**6))
    budget.charge(800)
    budget.release(700)
    budget.charge(200)
    assert budget.peak_bytes == 800
    budget.reset_peak()
    assert budget.peak_bytes == 300


def test_releasing_more_than_was_charged_is_an_error() -> None:
    budget = Budget(1000, machine=lambda: machine(10**6))
    budget.charge(10, "compute")
    with pytest.raises(ValueError, match="kv holds 0"):
        budget.release(10)


def test_without_a_limit_the_machine_is_asked() -> None:
    budget = Budget(None, machine=lambda: machine(available=500, total=1000))
    assert budget.limit_bytes is None
    with pytest.raises(CacheFull) as refusal:
        budget.charge(481)
    assert refusal.value.resource == "machine"
    budget.charge(480)  # a fiftieth of the machine stays free


def test_auto_asks_the_machine_before_every_growth() -> None:
    available = [1000]
    budget = Budget(auto=True, machine=lambda: machine(available[0], total=2000))
    budget.charge(800)
    available[0] = 300
    assert budget.left() == 100
    assert budget.limit_bytes == 900
    with pytest.raises(CacheFull):
        budget.charge(101)
    available[0] = 301
    budget.charge(101)


def test_a_lowered_limit_grants_nothing_and_takes_nothing() -> None:
    budget = Budget(1000, machine=lambda: machine(10**6))
    budget.charge(900)
    budget.set_limit(500)
    assert (budget.left(), budget.committed_bytes) == (0, 900)
    with pytest.raises(CacheFull):
        budget.charge(1)
    budget.release(900)
    budget.charge(500)


@pytest.mark.parametrize(("text", "limit"), [("4GiB", 4 << 30), (4096, 4096), ("none", None), (None, None)])
def test_parse(text: str | int | None, limit: int | None) -> None:
    assert Budget.parse(text).limit_bytes == limit


def test_parse_auto_is_below_what_this_machine_has_available() -> None:
    limit = Budget.parse("auto").limit_bytes
    assert limit is not None
    assert 0 < limit < Budget.parse("none").left()


@pytest.mark.parametrize("text", ["0", 0, -5, "much", "4 potatoes"])
def test_malformed_budgets(text: str | int) -> None:
    with pytest.raises(InvalidRequest):
        Budget.parse(text)
