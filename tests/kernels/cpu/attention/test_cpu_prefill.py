"""Attention over prompts, in float32 and in integers, against the definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.cpu_cases import cpu, exact, exact_attention, few_of, filled_cache, poisoned, ubatch_of

from elastikv.kernels import select_kernels
from elastikv.kernels.base import AttentionPrecision
from elastikv.kernels.cpu import CpuKernels
from elastikv.kernels.cpu.attention.chunks import CHUNK, LOW, UNITS, Products
from elastikv.kernels.cpu.attention.products_f32 import F32_PRODUCTS
from elastikv.kernels.cpu.attention.products_int16 import INT16_PRODUCTS
from elastikv.kernels.cpu.jit import fused
from elastikv.kernels.cpu.simd.features import has_fast_int16
from elastikv.memory import KVLayer
from elastikv.memory.base import CellType

# n_heads, KVLayer(n_kv_heads, head_dim, head_dim_v, window), tokens before and in the span
CASES = [
    pytest.param(16, KVLayer(8, 128, 128), (700, 150), id="two queries per K head"),
    pytest.param(4, KVLayer(4, 64, 64), (700, 150), id="one query per K head"),
    pytest.param(14, KVLayer(2, 64, 64), (700, 150), id="seven queries per K head"),
    pytest.param(8, KVLayer(1, 32, 32), (700, 150), id="one K head"),
    pytest.param(4, KVLayer(2, 256, 256), (300, 40), id="wide heads"),
    pytest.param(6, KVLayer(2, 40, 24), (700, 150), id="K and V of different widths"),
    pytest.param(3, KVLayer(3, 7, 33), (700, 150), id="odd widths"),
    pytest.param(8, KVLayer(4, 48, 48, window=50), (700, 150), id="window"),
    pytest.param(2, KVLayer(2, 16, 16, window=1), (700, 150), id="window of one"),
    pytest.param(2, KVLayer(1, 16, 16, window=9), (600, 700), id="window that hides whole chunks"),
    pytest.param(8, KVLayer(1, 16, 16), (0, 1100), id="long, from nothing"),
]
PRECISIONS = [pytest.param("f32", marks=pytest.mark.slow), "auto"]


def kernels_of(precision: str) -> CpuKernels:
    return exact() if precision == "f32" else cpu()


def bound(precision: str, in_float32: float, in_integers: float) -> float:
    """How large an error may be."""
    return in_integers if precision == "auto" and has_fast_int16() else in_float32


def error(
    precision: str,
    n_heads: int,
    layer: KVLayer,
    length: tuple[int, int],
    cell_type: CellType = "f16",
    q_factor: float = 1,
) -> tuple[float, float]:
    """Relative rms, and the largest."""
    torch.manual_seed(0)
    ubatch, cache = ubatch_of({0: length}), filled_cache(layer, {0: sum(length)}, cell_type)
    q, scale = torch.randn(ubatch.n_tokens, n_heads, layer.head_dim) * q_factor, layer.head_dim**-0.5
    out = poisoned(ubatch.n_tokens, n_heads, layer.head_dim_v)
    kernels_of(precision).attention(q, cache, 0, ubatch, scale, out)
    expected = exact_attention(q, cache, ubatch, scale)
    difference = out.double() - expected
    return float(difference.norm() / expected.norm()), float(difference.abs().max())


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("n_heads", "layer", "length"), CASES)
def test_shapes(precision: str, n_heads: int, layer: KVLayer, length: tuple[int, int]) -> None:
    rms, largest = error(precision, n_heads, layer, length)
    assert rms < bound(precision, 1e-6, 4e-4)
    assert largest < bound(precision, 5e-6, 2e-3)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("cell_type", few_of(["f32", "bf16", "q8_0"], "f32", "q8_0"))
def test_cell_types(precision: str, cell_type: CellType) -> None:
    assert error(precision, 6, KVLayer(2, 72, 40), (70, 40), cell_type)[0] < bound(precision, 1e-6, 4e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("q_factor", "integers"), [(10, 6e-4), (100, 1.5e-3)])
def test_peaked_scores(precision: str, q_factor: float, integers: float) -> None:
    """An error of a score is a relative one of its weight, and scores grow with queries. exp would overflow, too."""
    assert error(precision, 4, KVLayer(2, 128, 128), (400, 100), "f16", q_factor)[0] < bound(precision, 1e-5, integers)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_many_small_weights_beside_a_large_one(precision: str) -> None:
    """Each block of 64 cells has a unit of its own: those that a first cell outweighs by far still add up."""
    torch.manual_seed(0)
    ubatch, cache = ubatch_of({0: (6000, 10)}), filled_cache(KVLayer(1, 32, 32), {0: 6010}, "f32")
    cells = cache.cells(0, 0)
    keys, values = torch.zeros(6010, 1, 32), torch.ones(6010, 1, 32)
    keys[0], values[0] = 12.0, 0.0  # exp(12) times the weight of each of the others
    cells.k.store(slice(0, 6010), keys)
    cells.v.store(slice(0, 6010), values)
    q = torch.full((10, 1, 32), 1 / 32)
    out = kernels_of(precision).attention(q, cache, 0, ubatch, 1.0, poisoned(10, 1, 32)).double()
    tolerance = bound(precision, 1e-5, 0.02)  # in the first block they do not
    torch.testing.assert_close(out, exact_attention(q, cache, ubatch, 1.0), rtol=tolerance, atol=0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_queries_of_zeros_weigh_alike_what_they_see(precision: str) -> None:
    ubatch, cache = ubatch_of({0: (0, 20)}), filled_cache(KVLayer(1, 16, 16), {0: 20}, "f32")
    q = torch.zeros(20, 1, 16)
    out = kernels_of(precision).attention(q, cache, 0, ubatch, 1.0, poisoned(20, 1, 16)).double()
    atol = bound(precision, 1e-6, 1e-3)
    torch.testing.assert_close(out, exact_attention(q, cache, ubatch, 1.0), rtol=0, atol=atol)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_sums_at_their_largest(precision: str) -> None:
    """Values of one sign and one size, queries and keys alike: sums of integers must fit 32 bits."""
    ubatch, cache = ubatch_of({0: (500, 100)}), filled_cache(KVLayer(1, 256, 256), {0: 600}, "f32")
    cells = cache.cells(0, 0)
    cells.k.store(slice(0, 600), torch.full((600, 1, 256), -3.0))
    cells.v.store(slice(0, 600), torch.full((600, 1, 256), -5.0))
    q = torch.full((100, 1, 256), 7.0)
    out = kernels_of(precision).attention(q, cache, 0, ubatch, 1.0, poisoned(100, 1, 256))
    torch.testing.assert_close(out, torch.full((100, 1, 256), -5.0), rtol=1e-4, atol=0)


def test_precision_is_what_was_asked_for() -> None:
    asked_for: tuple[AttentionPrecision, ...] = ("f32", "auto")
    chosen = [select_kernels("cpu", "cpu", precision)._products for precision in asked_for]  # type: ignore[attr-defined]
    assert chosen == [F32_PRODUCTS, INT16_PRODUCTS if has_fast_int16() else F32_PRODUCTS]


@fused
def weights_of(products: Products, row: int, weights: int, units: int, end: int, factor: float) -> float:
    return products.softmax(row, weights, units, (0, end), np.float32(factor), LOW)[2]


@pytest.mark.parametrize("products", [F32_PRODUCTS, INT16_PRODUCTS])
def test_weights_of_masked_scores_are_zero(products: Products) -> None:
    """Not merely small: what they are multiplied with would make denormals, which some processors are slow at."""
    scores, units = np.full(CHUNK, 3.0, np.float32), np.full(UNITS, np.nan, np.float32)
    seen = (np.arange(CHUNK) >= 70) & (np.arange(CHUNK) < 90)
    scores[~seen] = LOW
    scores[75] = 3.0 - 100.0  # seen, but next to nothing
    weights = np.full(CHUNK, 77, np.float32 if products.weight_bytes == 4 else np.int16)
    total = weights_of(products, *(array.ctypes.data for array in (scores, weights, units)), CHUNK, 1.0)
    seen[75] = False
    assert total == 19
    assert np.array_equal(weights != 0, seen)
    assert np.unique(weights[seen]).size == 1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_prompt_may_be_cut(precision: str) -> None:
    """In pieces, rows differ by rounding only: other cells are in a chunk with theirs."""
    torch.manual_seed(0)
    cache = filled_cache(KVLayer(2, 64, 64), {0: 900})
    q = torch.randn(900, 4, 64)
    whole, pieces = (poisoned(900, 4, 64) for _ in range(2))
    kernels_of(precision).attention(q, cache, 0, ubatch_of({0: (0, 900)}), 0.125, whole)
    for begin, end in ((0, 33), (33, 600), (600, 900)):
        ubatch = ubatch_of({0: (begin, end - begin)})
        kernels_of(precision).attention(q[begin:end], cache, 0, ubatch, 0.125, pieces[begin:end])
    assert (whole - pieces).norm() / whole.norm() < bound(precision, 1e-6, 4e-4)
