"""Norms and SwiGLU of the cpu kernels against float64."""

from __future__ import annotations

import pytest
import torch
from support.cpu_cases import cpu, poisoned

# one row, odd widths, enough values for several threads
SHAPES = [(1, 1024), (3, 37), (5, 8), (40, 1000)]


def exact_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    x = x.double()
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight.double()


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_rms_norm(n: int, d: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(n, d + 9)[:, :d], torch.randn(d)  # rows that do not touch
    out = cpu().rms_norm(x, weight, 1e-5, poisoned(n, d))
    torch.testing.assert_close(out.double(), exact_rms_norm(x, weight, 1e-5), rtol=1e-6, atol=1e-6)


def test_rms_norm_of_zeros_is_zero() -> None:
    assert torch.equal(cpu().rms_norm(torch.zeros(2, 20), torch.ones(20), 1e-6, poisoned(2, 20)), torch.zeros(2, 20))


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_add_rms_norm(n: int, d: int) -> None:
    torch.manual_seed(0)
    x, residual, weight = torch.randn(n, d), torch.randn(n, d), torch.randn(d)
    total = x + residual
    out = cpu().add_rms_norm(x, residual, weight, 1e-5, poisoned(n, d))
    assert torch.equal(residual, total)
    torch.testing.assert_close(out.double(), exact_rms_norm(total, weight, 1e-5), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_silu_mul(n: int, d: int) -> None:
    torch.manual_seed(0)
    gate_up = torch.randn(n, 2 * d) * 3
    gate, up = gate_up.double().chunk(2, -1)
    out = cpu().silu_mul(gate_up, poisoned(n, d))
    torch.testing.assert_close(out.double(), torch.nn.functional.silu(gate) * up, rtol=1e-6, atol=1e-6)


def test_silu_far_from_zero() -> None:
    gate = torch.tensor([[-1e4, -100.0, -88.0, 0.0, 88.0, 100.0, 1e4]])
    out = cpu().silu_mul(torch.cat([gate, torch.ones_like(gate)], 1), poisoned(1, 7))
    torch.testing.assert_close(out, torch.nn.functional.silu(gate), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize(("n", "heads", "d"), [(1, 4, 128), (3, 2, 19), (50, 8, 64)])
def test_sigmoid_mul(n: int, heads: int, d: int) -> None:
    torch.manual_seed(0)
    x, wide = torch.randn(n, heads, d), torch.randn(n, heads * d + 7) * 3
    gate = wide[:, 7:].unflatten(1, (heads, d))
    expected = x.double() * torch.sigmoid(gate.double())
    torch.testing.assert_close(cpu().sigmoid_mul(x, gate).double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("n", "heads", "d"), [(1, 4, 128), (3, 2, 19), (50, 8, 64)])
def test_gated_rms_norm(n: int, heads: int, d: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(n, heads, d), torch.randn(d)
    gate = torch.randn(n, heads * d + 7)[:, 7:].unflatten(1, (heads, d))
    expected = exact_rms_norm(x, weight, 1e-6) * torch.nn.functional.silu(gate.double())
    out = cpu().gated_rms_norm(x, gate, weight, 1e-6, poisoned(n, heads, d))
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
    in_place = cpu().gated_rms_norm(x, gate, weight, 1e-6, x)
    assert torch.equal(in_place, out)
