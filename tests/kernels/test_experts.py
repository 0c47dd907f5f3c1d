"""Layers of experts against their definition in float64, on every backend and in every format of weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from support.cpu_cases import few_of, make_weight
from support.forward import NewBuffers
from torch.nn.functional import silu

from elastikv.kernels.base import ForwardPass, Kernels
from elastikv.kernels.composed import ComposedKernels
from elastikv.kernels.cpu import CpuKernels
from elastikv.kernels.cpu.fused import FusedExperts
from elastikv.kernels.reference import ReferenceKernels
from elastikv.kernels.weights import ExpertsWeights, ExpertWeights, LinearWeights, Norms
from tools.gguf_files import K_QUANTS

Values = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""What gate, up and down of an expert stand for, float64."""


class Composed(CpuKernels):
    """Offers no layer of experts in one call."""

    experts_layer = ComposedKernels.experts_layer


def make_expert(kinds: tuple[str, str, str], hidden: int, width: int) -> tuple[ExpertWeights, Values]:
    """kinds: of gate, up and down. Gate and up are one matrix where theirs are the same."""
    gate_kind, up_kind, down_kind = kinds
    down, down_values = make_weight(down_kind, hidden, width)
    if gate_kind == up_kind:
        gate_up, values = make_weight(gate_kind, 2 * width, hidden)
        gate_values, up_values = values.chunk(2)
        matrices = LinearWeights.of([(gate_up, None)])
    else:
        gate, gate_values = make_weight(gate_kind, width, hidden)
        up, up_values = make_weight(up_kind, width, hidden)
        matrices = LinearWeights.of([(gate, None), (up, None)])
    expert = ExpertWeights(matrices, LinearWeights.of([(down, None)]))
    return expert, (gate_values, up_values, down_values)


class Case:
    """A random layer and its definition."""

    def __init__(
        self,
        kinds: tuple[str, str, str] = ("f32", "f32", "f32"),
        *,
        hidden: int = 64,
        width: int = 32,
        n_experts: int = 8,
        n_used: int = 3,
        normalised: bool = True,
        shared: tuple[tuple[str, str, str], int] | None = None,
        after: bool = False,
    ) -> None:
        torch.manual_seed(0)
        experts, self.values = zip(*(make_expert(kinds, hidden, width) for _ in range(n_experts)), strict=True)
        shared_expert = None
        if shared is not None:
            shared_expert, self.shared_values = make_expert(shared[0], hidden, shared[1])
        router = torch.randn(n_experts + (shared is not None), hidden)
        norms = Norms(torch.rand(hidden), 1e-6, torch.rand(hidden) if after else None)
        self.weights = ExpertsWeights(norms, router, experts, n_used, normalised, shared_expert)

    def run(self, kernels: Kernels, x: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        residual, out = x.clone(), delta.clone()
        forward = ForwardPass(None, None, None, NewBuffers(), {})  # type: ignore[arg-type]
        kernels.experts_layer(self.weights)(out, residual, forward)
        assert torch.equal(residual, x + delta)
        return out

    def wanted(self, x: torch.Tensor) -> torch.Tensor:
        weights, norms = self.weights, self.weights.norms
        x = torch.nn.functional.rms_norm(x, x.shape[1:], norms.before, norms.eps).double()
        logits = x @ weights.router.double().t()
        shares, chosen = logits[:, : len(weights.experts)].softmax(-1).topk(weights.n_used)
        if weights.normalised:
            shares = shares / shares.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for row in range(len(x)):
            for share, expert in zip(shares[row], chosen[row].tolist(), strict=True):
                out[row] += share * gated_mlp(x[row], self.values[expert])
        if weights.shared is not None:
            out += logits[:, -1:].sigmoid() * gated_mlp(x, self.shared_values)
        if norms.after is not None:
            out = torch.nn.functional.rms_norm(out, x.shape[1:], norms.after.double(), norms.eps)
        return out

    def error(self, kernels: Kernels, n: int) -> float:
        x, delta = torch.randn(n, self.weights.router.shape[1]), torch.randn(n, self.weights.router.shape[1])
        wanted = self.wanted(x + delta)
        return float((self.run(kernels, x, delta).double() - wanted).norm() / wanted.norm())


def gated_mlp(x: torch.Tensor, values: Values) -> torch.Tensor:
    gate, up, down = values
    return (silu(x @ gate.t()) * (x @ up.t())) @ down.t()


@pytest.mark.parametrize(
    "kernels", [ReferenceKernels(), CpuKernels(), Composed()], ids=["reference", "cpu", "composed"]
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalised": False, "after": True},
        {"n_experts": 4, "n_used": 1},
        {"n_experts": 3, "n_used": 3, "shared": (("f32",) * 3, 48)},
        {"normalised": False, "width": 20, "hidden": 36, "shared": (("f32",) * 3, 20)},
    ],
)
def test_routing_sharing_and_widths(kernels: Kernels, options: dict[str, Any]) -> None:
    case = Case(**options)
    for n in (1, 2, 7, 40):
        assert case.error(kernels, n) < 2e-6


@pytest.mark.parametrize("kind", few_of(["f16", "bf16", "q8_0", "q4_0", "q4_k"], "q8_0"))
def test_every_format(kind: str) -> None:
    """In one call for few tokens: the bits that the operations give one by one."""
    width = 256 if kind in K_QUANTS else 64
    case = Case((kind,) * 3, hidden=width, width=width, shared=((kind,) * 3, width))
    assert isinstance(CpuKernels().experts_layer(case.weights), FusedExperts)
    for n in (1, 3, 8, 60):
        assert case.error(ReferenceKernels(), n) < 2e-6
        # Three products in a row, each with the error that ``LinearKernel`` says.
        assert case.error(CpuKernels(), n) < (2e-6 if kind == "f16" else 0.03)
        assert_same_bits(case, n)


def assert_same_bits(case: Case, n: int) -> None:
    x, delta = torch.randn(2, n, case.weights.router.shape[1])
    assert torch.equal(case.run(CpuKernels(), x, delta), case.run(Composed(), x, delta))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kinds", "shared"),
    [
        (("q4_k", "q4_k", "q6_k"), ("q8_0", "q8_0", "q8_0")),  # as in a Q4_K_M file
        (("q4_k", "q6_k", "q4_k"), ("q4_k", "q6_k", "q8_0")),
    ],
)
def test_formats_beside_each_other(kinds: tuple[str, str, str], shared: tuple[str, str, str]) -> None:
    case = Case(kinds, hidden=256, width=256, shared=(shared, 256), n_experts=4, n_used=2)
    assert isinstance(CpuKernels().experts_layer(case.weights), FusedExperts)
    for n in (1, 5):
        assert case.error(CpuKernels(), n) < 0.03
        assert_same_bits(case, n)


def test_experts_of_different_formats_are_composed() -> None:
    case, other = Case(), Case(("f16",) * 3)
    mixed = (*case.weights.experts[:-1], other.weights.experts[-1])
    case.weights = dataclasses.replace(case.weights, experts=mixed)
    case.values = (*case.values[:-1], other.values[-1])
    layer = CpuKernels().experts_layer(case.weights)
    assert not isinstance(layer, FusedExperts)
    assert case.error(CpuKernels(), 5) < 2e-6


def test_many_tokens_are_brought_together() -> None:
    """However few experts there are: a layer that reads weights once for few tokens does not serve many."""
    case = Case(n_experts=2, n_used=2)
    calls = []
    kernels = CpuKernels()
    layer = kernels.experts_layer(case.weights)
    layer._compute = lambda *args, **options: calls.append(len(args[0]))  # type: ignore[method-assign]
    for n in (8, 9):
        layer(torch.randn(n, 64), torch.randn(n, 64), ForwardPass(None, None, None, NewBuffers(), {}))  # type: ignore[arg-type]
    assert calls == [9]
