"""Products with dense and packed weights against float64 products with the very values that the weights stand for."""

from __future__ import annotations

import pytest
import torch
from support.cpu_cases import DTYPES, FORMATS, cpu, few_of, make_weight, poisoned

from elastikv.kernels import quants
from elastikv.kernels.cpu.matmul import linear
from elastikv.kernels.weights import PackedTensor
from tools.gguf_files import K_QUANTS


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


def allowed_error(product: linear.LinearKernel, kind: str, n: int) -> float:
    """What ``LinearKernel`` says of itself."""
    if product._int8 and kind in (*K_QUANTS, "q4_0", "q8_0"):
        return 8e-3
    return 4e-3 if product._bf16 and n > 1 and kind == "bf16" else 1e-6


@pytest.mark.parametrize("kind", few_of(FORMATS, "f32", "bf16", "q8_0", "q4_k"))
@pytest.mark.parametrize("n", [1, 2, 4, 7, 8, 9, 33])
def test_values(product: linear.LinearKernel, kind: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "TILE_VALUES", 20 * 224)  # several tiles, the last one smaller
    monkeypatch.setattr(linear, "INPUT_VALUES", 15 * 224)
    torch.manual_seed(0)
    # An odd and an even number of blocks' pairs, and one that is no pair; or an odd and an even number of large blocks.
    for n_in in (256, 768, 1024) if kind in K_QUANTS else (224, 320):
        weight, values = make_weight(kind, 53, n_in)
        x, bias = torch.randn(n, n_in), torch.randn(53)
        out = product(x, weight, bias, poisoned(n, 53))
        assert relative_error(out, x.double() @ values.t() + bias.double()) < allowed_error(product, kind, n)


@pytest.mark.parametrize("kind", few_of(["q8_0", "q4_0"], "q8_0"))
def test_packed_weights_at_the_ends_of_their_range(kind: str) -> None:
    """-128 and 127, -8 and 7, zero scales, and an x of zeros."""
    torch.manual_seed(0)
    n_bytes, least, most = {"q8_0": (34, 0x80, 0x7F), "q4_0": (18, 0x00, 0xFF)}[kind]
    blocks = torch.empty(6, 2 * n_bytes, dtype=torch.uint8)
    blocks[:4], blocks[4:] = least, most
    scale = torch.tensor([0.01], dtype=torch.float16).view(torch.uint8)
    blocks[:, :2], blocks[:, n_bytes : n_bytes + 2] = scale, scale
    blocks[3, :2] = 0
    weight = PackedTensor(kind, (6, 64), blocks)
    values = quants.unpack(blocks, kind).double()
    for x in (torch.randn(1, 64), torch.ones(1, 64), torch.zeros(1, 64), torch.full((1, 64), -1e-30)):
        for n in (1, 2):
            out = cpu().linear(x.repeat(n, 1), weight, None, poisoned(n, 6))
            torch.testing.assert_close(out.double(), (x.double() @ values.t()).repeat(n, 1), rtol=0.01, atol=0.02)


@pytest.mark.parametrize("n", [1, 3, 20])
def test_columns_of_a_wider_output(n: int) -> None:
    torch.manual_seed(0)
    weight, values = make_weight("q8_0", 40, 64)
    x, wide = torch.randn(n, 64), poisoned(n, 100)
    cpu().linear(x, weight, None, wide[:, 30:70])
    assert relative_error(wide[:, 30:70], x.double() @ values.t()) < 8e-3
    assert wide[:, :30].isnan().all()
    assert wide[:, 70:].isnan().all()


@pytest.mark.parametrize("kind", list(DTYPES))
def test_widths_that_are_no_multiple_of_a_vector(kind: str) -> None:
    torch.manual_seed(0)
    for n_in in (1, 15, 17, 75, 129):
        weight, values = make_weight(kind, 9, n_in)
        for n in (1, 3):
            x = torch.randn(n, n_in)
            allowed = 8e-3 if kind == "bf16" and n > 1 else 1e-6
            assert relative_error(cpu().linear(x, weight, None, poisoned(n, 9)), x.double() @ values.t()) < allowed


def test_a_slice_of_a_weight() -> None:
    """Rows of a larger matrix that do not touch."""
    torch.manual_seed(0)
    whole = torch.randn(10, 40)
    x = torch.randn(2, 32)
    out = cpu().linear(x, whole[:, :32], None, poisoned(2, 10))
    assert relative_error(out, x.double() @ whole[:, :32].double().t()) < 1e-6


def test_prompts_of_all_lengths_are_few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each number of rows that oneDNN meets costs it half a megabyte that it keeps."""
    n_rows = set()
    multiply = torch.mm

    def count(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        n_rows.add(x.shape[0])
        return multiply(x, weight)

    monkeypatch.setattr(torch, "mm", count)
    monkeypatch.setattr(linear, "has_fast_bf16", lambda: True)  # torch multiplies in bf16 everywhere
    weight = torch.randn(64, 96).bfloat16()
    for n in range(17, 257):
        linear.LinearKernel()(torch.randn(n, 96), weight, None, poisoned(n, 64))
    assert n_rows == set(range(32, 257, 32))
