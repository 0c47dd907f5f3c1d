"""Products of packed weights with rows of x, in integers: shapes that fill no tile, bits that do not change."""

from __future__ import annotations

from collections.abc import Iterator

import numba
import pytest
import torch
from support.cpu_cases import cpu, few_of, make_weight, poisoned

from elastikv.kernels import quants
from elastikv.kernels.cpu.matmul import gemm_int8
from elastikv.kernels.cpu.simd import features
from elastikv.kernels.weights import PackedTensor, Weight
from tools.gguf_files import K_QUANTS

KINDS = few_of(("q8_0", "q4_0", *K_QUANTS), "q8_0", "q4_k")

pytestmark = pytest.mark.skipif(not features.has_byte_products(), reason="float32 serves without AVX2")


@pytest.fixture
def threads() -> Iterator[None]:
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)


def product(x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
    return cpu().linear(x, weight, bias, poisoned(len(x), weight.shape[0]))


def quantised(x: torch.Tensor) -> torch.Tensor:
    """x as the products take it, in float64: 8 bits, a scale for 32 values."""
    blocks = x.unflatten(1, (-1, 32))
    scales = blocks.abs().amax(2, keepdim=True) / 127
    return ((blocks / scales).round().double() * scales.double()).flatten(1)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_x_is_rounded(kind: str) -> None:
    """Panels and tiles that are full and that are not, one chunk of a row and more of them; with a bias and without."""
    torch.manual_seed(0)
    for n_in in (256, gemm_int8.CHUNK + 256):
        for n_out in (1, 31, 32, 80):
            weight, values = make_weight(kind, n_out, n_in)
            for n in (1, 2, 3, 5, 40):
                x, bias = torch.randn(n, n_in), torch.randn(n_out)
                wanted = quantised(x) @ values.t()
                for got, exact in (
                    (product(x, weight), wanted),
                    (product(x, weight, bias), wanted + bias.double()),
                ):
                    # An x that lies between two integers may be rounded to either.
                    assert float((got.double() - exact).norm() / exact.norm()) < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_x_gives_the_same_bits_whatever_is_beside_it(kind: str, threads: None) -> None:
    torch.manual_seed(0)
    weight, _ = make_weight(kind, 100, 768)
    x = torch.randn(70, 768)
    whole = product(x, weight)
    for sizes in ([1, 69], [2, 68], [35, 35], [3, 7, 17, 43]):
        numba.set_num_threads(min(sizes[0], numba.config.NUMBA_NUM_THREADS))
        assert torch.equal(torch.cat([product(piece, weight) for piece in x.split(sizes)]), whole)


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
@pytest.mark.parametrize("n_in", [32, 288])
def test_rows_that_are_not_whole_groups_of_eight_blocks(kind: str, n_in: int) -> None:
    torch.manual_seed(0)
    weight, values = make_weight(kind, 70, n_in)
    x = torch.randn(2, n_in)
    whole, exact = product(x, weight), quantised(x) @ values.t()
    assert float((whole.double() - exact).norm() / exact.norm()) < 1e-3
    assert torch.equal(torch.cat([product(row, weight) for row in x.split(1)]), whole)


def test_more_rows_than_are_quantised_at_once() -> None:
    torch.manual_seed(0)
    n_in = 1 << 14
    n = gemm_int8.X_VALUES // n_in + 7
    weight, _ = make_weight("q8_0", 5, n_in)
    x = torch.randn(n, n_in)
    assert torch.equal(product(x, weight), torch.cat([product(piece, weight) for piece in x.split(n - n // 2)]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fill", [0x00, 0xFF, 0x7F, 0x80])
def test_sums_that_are_as_large_as_they_can_be(kind: str, fill: int) -> None:
    """All weights at one end of their range, times an x of one size with both signs: no sum may wrap."""
    torch.manual_seed(0)
    n_bytes = quants.row_bytes(kind, 256)
    blocks = torch.full((33, n_bytes), fill, dtype=torch.uint8)
    one = torch.tensor([1.0], dtype=torch.float16).view(torch.uint8)
    step = {"q8_0": 34, "q4_0": 18}.get(kind, n_bytes)
    for start in range(0, n_bytes, step):
        places = {"q6_k": (208,), "q8_0": (0,), "q4_0": (0,)}.get(kind, (0, 2))
        for place in places:
            blocks[:, start + place : start + place + 2] = one
    weight, values = PackedTensor(kind, (33, 256), blocks), quants.unpack(blocks, kind).double()
    for x in (torch.ones(4, 256), -torch.ones(4, 256), torch.ones(4, 256) * torch.tensor([1, -1]).repeat(128)):
        torch.testing.assert_close(product(x, weight).double(), x.double() @ values.t(), rtol=1e-5, atol=1e-2)
