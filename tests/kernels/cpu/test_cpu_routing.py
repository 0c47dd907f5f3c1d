"""Which experts tokens go to, as transformers' routers choose them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.cpu_cases import poisoned

from elastikv.kernels.cpu import routing


def route(logits: torch.Tensor, n_experts: int, n_used: int, normalised: bool) -> tuple[torch.Tensor, torch.Tensor]:
    weights = poisoned(len(logits), n_used + logits.shape[1] - n_experts)
    experts = torch.full((len(logits), n_used), -1)
    routing.route(logits.numpy(), n_experts, normalised, weights.numpy(), experts.numpy())
    return weights, experts


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize(("n", "n_experts", "n_used"), [(1, 4, 1), (3, 8, 8), (5, 60, 4), (200, 128, 8)])
def test_the_largest_of_a_softmax_over_all(n: int, n_experts: int, n_used: int, normalised: bool) -> None:
    torch.manual_seed(0)
    logits = torch.randn(n, n_experts) * 3
    weights, experts = route(logits, n_experts, n_used, normalised)
    wanted, chosen = logits.double().softmax(-1).topk(n_used)
    if normalised:
        wanted /= wanted.sum(-1, keepdim=True)
    chosen, order = chosen.sort(-1)
    assert torch.equal(experts, chosen)  # in the order of experts
    torch.testing.assert_close(weights.double(), wanted.gather(1, order), rtol=1e-5, atol=0)


def test_logits_far_apart_and_large() -> None:
    logits = torch.tensor([[1e4, -1e4, 1e4 - 1, 0.0], [-1e4, -2e4, -1.5e4, -1e4 - 50]])
    weights, experts = route(logits, 4, 2, normalised=False)
    assert experts.tolist() == [[0, 2], [0, 3]]
    torch.testing.assert_close(weights, logits.softmax(-1).gather(1, experts), rtol=1e-5, atol=1e-37)


def test_equal_ones_go_to_the_first_experts() -> None:
    logits = torch.zeros(2, 16)
    logits[1, 9] = logits[1, 12] = 1
    _, experts = route(logits, 16, 3, normalised=True)
    assert experts.tolist() == [[0, 1, 2], [0, 9, 12]]


def test_a_shared_expert_has_the_sigmoid_of_its_gate() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 9) * 4
    weights, experts = route(logits, 8, 2, normalised=True)
    alone, same = route(logits[:, :8].contiguous(), 8, 2, normalised=True)
    assert torch.equal(experts, same)
    assert torch.equal(weights[:, :2], alone)
    torch.testing.assert_close(weights[:, 2], logits[:, 8].sigmoid())


def test_pairs_lie_in_the_order_of_experts() -> None:
    experts = np.array([[1, 3], [0, 3], [3, 4]])
    first, tokens, pairs = routing.by_expert(experts, 6)
    assert first.tolist() == [0, 1, 2, 2, 5, 6, 6]
    assert tokens.tolist() == [1, 0, 0, 1, 2, 2]
    assert pairs.tolist() == [[1, 2], [0, 3], [4, 5]]
