"""Compute buffers: charged before they are there, given back whole, and nothing changed by a refusal."""

from __future__ import annotations

import pytest
import torch
from support.history_model import HistoryModel

from elastikv.errors import CacheFull
from elastikv.memory import Budget
from elastikv.runtimes import workspace as workspace_module
from elastikv.runtimes.workspace import Workspace

BUFFERS = 4 * 16


def make(limit: int | str = "none") -> tuple[Workspace, Budget]:
    budget = Budget.parse(limit)
    return Workspace(HistoryModel(), budget, n_ubatch=16), budget


def test_buffers_and_scratch_are_charged_to_compute() -> None:
    workspace, budget = make()
    workspace.reserve(100)
    assert budget.compute_bytes == workspace.committed_bytes == BUFFERS + 100
    assert budget.kv_bytes == 0


def test_it_follows_the_capacity_up_and_down_and_keeps_its_buffers() -> None:
    workspace, budget = make()
    workspace.reserve(100)
    address = workspace.view("tokens", (16,)).data_ptr()
    workspace.reserve(300)
    assert budget.compute_bytes == BUFFERS + 300
    workspace.reserve(50)
    assert budget.compute_bytes == BUFFERS + 50
    assert workspace.view("tokens", (16,)).data_ptr() == address
    workspace.close()
    assert budget.committed_bytes == 0


def test_a_refusal_changes_nothing() -> None:
    workspace, budget = make(1000)
    workspace.reserve(100)
    workspace.view("tokens", (16,)).fill_(3.0)
    with pytest.raises(CacheFull, match="kv-budget"):
        workspace.reserve(5000)
    assert budget.compute_bytes == workspace.committed_bytes == BUFFERS + 100
    assert workspace.view("tokens", (16,)).sum() == 48


def test_an_allocation_that_fails_gives_its_charge_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*args: object, **kwargs: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(workspace_module.mmap, "mmap", no_memory)
    workspace, budget = make()
    with pytest.raises(CacheFull, match="machine"):
        workspace.reserve(100)
    assert budget.committed_bytes == 0


def test_views_of_one_name_share_memory_whatever_their_type() -> None:
    workspace, _ = make()
    workspace.reserve(0)
    workspace.view("tokens", (4, 2)).fill_(1.0)
    view = workspace.view("tokens", (8,), torch.int32)
    assert view.shape == (8,)
    assert view.tolist() == [0x3F800000] * 8
