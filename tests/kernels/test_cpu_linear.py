"""Products with dense and packed weights against float64 products with the very values that the weights stand for."""

from __future__ import annotations

import pytest
import torch
from cpu_cases import cpu, poisoned

from elastikv.kernels.base import PackedTensor, Weight
from elastikv.kernels.cpu import linear
from elastikv.weights import quants

FORMATS = ["f32", "f16", "bf16", "q8_0", "q4_0"]
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def make_weight(kind: str, n_out: int, n_in: int) -> tuple[Weight, torch.Tensor]:
    """A weight, and the values it stands for in float64."""
    values = torch.randn(n_out, n_in) / n_in**0.5
    if kind in DTYPES:
        dense = values.to(DTYPES[kind])
        return dense, dense.double()
    packed = quants.pack(values, kind)
    return PackedTensor(kind, (n_out, n_in), packed), quants.unpack(packed, kind).double()


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("n", [1, 2, 4, 7, 8])
def test_few_rows(kind: str, n: int) -> None:
    torch.manual_seed(0)
    weight, values = make_weight(kind, 53, 224)
    x, bias = torch.randn(n, 224), torch.randn(53)
    out = cpu().linear(x, weight, bias, poisoned(n, 53))
    assert relative_error(out, x.double() @ values.t() + bias.double()) < FEW_ROWS_ERROR[kind]


FEW_ROWS_ERROR = {"f32": 1e-6, "f16": 1e-6, "bf16": 1e-6, "q8_0": 1e-6, "q4_0": 1e-6}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("fast_bf16", [True, False])
def test_many_rows(kind: str, fast_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "has_fast_bf16", lambda: fast_bf16)
    monkeypatch.setattr(linear, "TILE_VALUES", 20 * 224)  # several tiles, the last one smaller
    torch.manual_seed(0)
    weight, values = make_weight(kind, 53, 224)
    x, bias = torch.randn(33, 224), torch.randn(53)
    out = linear.LinearKernel()(x, weight, bias, poisoned(33, 53))
    bf16_product = fast_bf16 and kind not in ("f32", "f16")
    assert relative_error(out, x.double() @ values.t() + bias.double()) < (4e-3 if bf16_product else 1e-6)


@pytest.mark.parametrize("n", [1, 3, 20])
def test_columns_of_a_wider_output(n: int) -> None:
    torch.manual_seed(0)
    weight, values = make_weight("q8_0", 40, 64)
    x, wide = torch.randn(n, 64), poisoned(n, 100)
    cpu().linear(x, weight, None, wide[:, 30:70])
    assert relative_error(wide[:, 30:70], x.double() @ values.t()) < 5e-3
    assert wide[:, :30].isnan().all()
    assert wide[:, 70:].isnan().all()


@pytest.mark.parametrize("kind", list(DTYPES))
def test_widths_that_are_no_multiple_of_a_vector(kind: str) -> None:
    torch.manual_seed(0)
    for n_in in (1, 15, 17, 75, 129):
        weight, values = make_weight(kind, 9, n_in)
        for n in (1, 3):
            x = torch.randn(n, n_in)
            assert relative_error(cpu().linear(x, weight, None, poisoned(n, 9)), x.double() @ values.t()) < 1e-6


def test_a_slice_of_a_weight() -> None:
    """Rows of a larger matrix that do not touch."""
    torch.manual_seed(0)
    whole = torch.randn(10, 40)
    x = torch.randn(2, 32)
    out = cpu().linear(x, whole[:, :32], None, poisoned(2, 10))
    assert relative_error(out, x.double() @ whole[:, :32].double().t()) < 1e-6
