from __future__ import annotations

import pytest

from elastikv.errors import CacheFull, InvalidRequest
from elastikv.memory import Budget
from elastikv.memory.budget import Account
from elastikv.memory.machine import MachineMemory


class Held:
    """So many bytes, committed under a budget."""

    def __init__(self, budget: Budget, n_bytes: int, account: Account = "kv", pool: str = "cpu") -> None:
        budget.require(n_bytes, pool)
        self.committed_bytes = n_bytes
        budget.watch(self, account, pool)


def machine(available: int, total: int = 1000) -> MachineMemory:
    return MachineMemory(total, available)


def test_charges_of_both_accounts_count_against_one_limit() -> None:
    budget = Budget(1000, machine=lambda: machine(10**6))
    held = [Held(budget, 600), Held(budget, 300, "compute")]
    assert (budget.kv_bytes, budget.compute_bytes, budget.committed_bytes, budget.left()) == (600, 300, 900, 100)
    with pytest.raises(CacheFull) as refusal:
        budget.require(101)
    error = refusal.value
    assert (error.resource, error.asked, error.left, error.limit) == ("kv-budget", 101, 100, 1000)
    assert "--kv-budget" in str(error)
    held[0].committed_bytes = 200
    assert (budget.committed_bytes, budget.left()) == (500, 500)


def test_peak_remembers_transients() -> None:
    budget = Budget(1000, machine=lambda: machine(10**6))
    held = Held(budget, 800)
    held.committed_bytes = 100
    budget.require(200)
    assert (budget.committed_bytes, budget.peak_bytes) == (100, 800)
    budget.require(800)
    assert budget.peak_bytes == 900
    budget.reset_peak()
    assert budget.peak_bytes == 100


def test_what_is_lost_is_not_counted() -> None:
    """Memory that nobody refers to any more is gone; an interrupt in the wrong place is no leak."""
    budget = Budget(1000, machine=lambda: machine(10**6))
    held = [Held(budget, 100) for _ in range(3)]
    del held[1]
    assert budget.kv_bytes == 200
    held.clear()
    assert budget.kv_bytes == 0


def test_without_a_limit_the_machine_is_asked() -> None:
    budget = Budget(None, machine=lambda: machine(available=500, total=1000))
    assert budget.limit_bytes is None
    with pytest.raises(CacheFull) as refusal:
        budget.require(481)
    assert refusal.value.resource == "machine"
    budget.require(480)  # a fiftieth of the machine stays free


def test_auto_asks_the_machine_before_every_growth() -> None:
    available = [1000]
    budget = Budget(auto=True, machine=lambda: machine(available[0], total=2000))
    held = Held(budget, 800)
    available[0] = 300
    assert budget.left() == 100
    assert budget.limit_bytes == 900
    with pytest.raises(CacheFull):
        budget.require(101)
    available[0] = 301
    budget.require(101)
    assert held.committed_bytes == budget.committed_bytes


def test_a_lowered_limit_grants_nothing_and_takes_nothing() -> None:
    budget = Budget(1000, machine=lambda: machine(10**6))
    held = Held(budget, 900)
    budget.set_limit(500)
    assert (budget.left(), budget.committed_bytes) == (0, 900)
    with pytest.raises(CacheFull):
        budget.require(1)
    held.committed_bytes = 0
    budget.require(500)


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


def test_each_pool_has_a_ledger_and_one_limit_holds_for_all() -> None:
    budget = Budget(1000, machine=lambda: machine(10**6))
    budget.add_pool("card", lambda: machine(520))
    held = [Held(budget, 300, "kv", "card"), Held(budget, 400, "compute")]
    assert (budget.pool_bytes("card"), budget.pool_bytes("cpu")) == (300, 400)
    assert (budget.kv_bytes, budget.compute_bytes, budget.committed_bytes) == (300, 400, 700)
    assert (budget.left("card"), budget.left("cpu")) == (300, 300)
    with pytest.raises(CacheFull) as refusal:
        budget.require(301, "card")
    assert refusal.value.resource == "kv-budget"
    del held[1]
    assert (budget.left("card"), budget.left("cpu")) == (500, 700)
    with pytest.raises(CacheFull) as refusal:
        budget.require(501, "card")
    assert (refusal.value.resource, refusal.value.left, refusal.value.limit) == ("machine", 500, 800)


def test_a_pool_that_nobody_added_has_the_limit_alone() -> None:
    budget = Budget(1000, machine=lambda: machine(100))
    held = Held(budget, 600, "kv", "card")
    assert (budget.left("card"), budget.left()) == (400, 80)
    with pytest.raises(CacheFull):
        budget.require(401, "card")
    held.committed_bytes = 0
    budget.set_limit("none")
    budget.require(10**9, "card")


def test_auto_is_what_all_pools_can_spare() -> None:
    budget = Budget(auto=True, machine=lambda: machine(500, total=1000))
    budget.add_pool("card", lambda: machine(300, total=1000))
    assert budget.limit_bytes == 400 + 200
