"""Products of several matrices with rows of their own give what the same products give one by one, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.cpu_cases import FORMATS, few_of, make_weight, poisoned

from elastikv.kernels.cpu.jit import fused
from elastikv.kernels.cpu.matmul import grouped
from elastikv.kernels.cpu.matmul.linear import LinearKernel, matrix_of
from tools.gguf_files import K_QUANTS

N_OUT = 37


@fused
def multiply(tag: Any, groups: np.ndarray, n_single: int, shape: Any, n_threads: int) -> None:
    grouped.multiply(tag, groups, n_single, shape, n_threads)


def assert_same_bits(
    kernel: LinearKernel, kind: str, n_in: int, counts: list[int], rows: list[int] | None = None, **options: Any
) -> None:
    """counts: rows of x of each matrix; rows: where each matrix's begin, if not one after the other."""
    weights = [make_weight(kind, N_OUT, n_in)[0] for _ in counts]
    stride = matrix_of(weights[0], None)[1]
    ends = np.cumsum(counts)
    firsts = (ends - counts).tolist() if rows is None else rows
    x, out = torch.randn(int(ends[-1]), n_in), poisoned(int(ends[-1]), N_OUT)
    lines = [
        (matrix_of(weight, None)[0], x[first].data_ptr(), count, out[end - count].data_ptr())
        for weight, first, count, end in zip(weights, firsts, counts, ends.tolist(), strict=True)
    ]
    n_single = sum(count == 1 for count in counts)
    shape = (stride, N_OUT, n_in, n_in * 4, N_OUT * 4)
    n_threads = options.get("n_threads", 2)
    multiply(kernel.product(weights[0]), np.array(lines, dtype=np.int64), n_single, shape, n_threads)
    for weight, first, count, got in zip(weights, firsts, counts, out.split(counts), strict=True):
        assert torch.equal(got, kernel(x[first : first + count], weight, None, poisoned(count, N_OUT)))


@pytest.mark.parametrize("kind", few_of(FORMATS, "f32", "bf16", "q8_0"))
def test_one_row_each_and_several(product: LinearKernel, kind: str) -> None:
    torch.manual_seed(0)
    for n_in in (256, 768) if kind in K_QUANTS else (64, 320):
        for counts in ([1], [1, 1, 1], [1, 1, 2, 5, 8], [4, 3]):
            assert_same_bits(product, kind, n_in, counts)


@pytest.mark.parametrize("n_threads", [1, 3, 64])
def test_any_number_of_shares(n_threads: int) -> None:
    torch.manual_seed(0)
    assert_same_bits(LinearKernel(), "q8_0", 64, [1, 1, 3], n_threads=n_threads)


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_matrices_that_share_their_rows(kind: str) -> None:
    torch.manual_seed(0)
    assert_same_bits(LinearKernel(), kind, 128, [1, 1, 1, 1], rows=[0, 0, 2, 2])
    assert_same_bits(LinearKernel(), kind, 128, [3, 2, 2], rows=[1, 1, 0])
