"""Attention of the cpu kernels against the definition in float64, over the cells as they are stored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.cpu_cases import cpu, exact, exact_attention, filled_cache, poisoned, ubatch_of

from elastikv.kernels.cpu import CpuKernels
from elastikv.kernels.reference import ReferenceKernels
from elastikv.memory import KVLayer
from elastikv.memory.base import CellType

# n_heads, KVLayer(n_kv_heads, head_dim, head_dim_v, window)
SHAPES = [
    pytest.param(16, KVLayer(8, 128, 128), id="two queries per K head"),
    pytest.param(4, KVLayer(4, 64, 64), id="one query per K head"),
    pytest.param(14, KVLayer(2, 64, 64), id="seven queries per K head"),
    pytest.param(8, KVLayer(1, 32, 32), id="one K head"),
    pytest.param(6, KVLayer(2, 40, 24), id="K and V of different widths"),
    pytest.param(3, KVLayer(3, 7, 33), id="odd widths"),
    pytest.param(8, KVLayer(4, 48, 48, window=50), id="window"),
    pytest.param(2, KVLayer(2, 16, 16, window=1), id="window of one"),
]


def check(
    n_heads: int,
    layer: KVLayer,
    lengths: dict[int, tuple[int, int]],
    k_type: CellType,
    tolerance: float,
    v_type: CellType | None = None,
    kernels: CpuKernels | None = None,
) -> None:
    torch.manual_seed(0)
    ubatch = ubatch_of(lengths)
    cache = filled_cache(layer, {seq_id: sum(length) for seq_id, length in lengths.items()}, k_type, v_type)
    q = torch.randn(ubatch.n_tokens, n_heads, layer.head_dim)
    scale = layer.head_dim**-0.5
    out = (kernels or cpu()).attention(q, cache, 0, ubatch, scale, poisoned(ubatch.n_tokens, n_heads, layer.head_dim_v))
    torch.testing.assert_close(out.double(), exact_attention(q, cache, ubatch, scale), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("n_heads", "layer"), SHAPES)
def test_one_token_each_of_sequences_of_unequal_length(n_heads: int, layer: KVLayer) -> None:
    check(n_heads, layer, {0: (0, 1), 3: (63, 1), 1: (64, 1), 7: (299, 1), 2: (1500, 1)}, "f16", 2e-6)


@pytest.mark.parametrize(
    ("k_type", "v_type", "tolerance"),
    [
        ("f16", "f16", 2e-6),
        pytest.param("bf16", "f32", 2e-6, marks=pytest.mark.slow),
        pytest.param("q8_0", "bf16", 2e-5, marks=pytest.mark.slow),
        pytest.param("f32", "q8_0", 8e-5, marks=pytest.mark.slow),
        ("q8_0", "q8_0", 8e-5),
    ],
)
@pytest.mark.parametrize("n_heads", [2, 4, 6, 10])
def test_cell_types(k_type: CellType, v_type: CellType, tolerance: float, n_heads: int) -> None:
    """Every type as K and as V; each pair is a kernel of its own. q8_0 rounds queries and weights to 16 bits."""
    check(n_heads, KVLayer(2, 72, 40), {0: (200, 1), 1: (30, 40), 2: (99, 1)}, k_type, tolerance, v_type, exact())


def test_weights_of_q8_0_far_apart() -> None:
    """Each block of 64 cells rounds to 16 bits by itself: many small weights count beside few large ones."""
    ubatch, cache = ubatch_of({0: (6000, 1)}), filled_cache(KVLayer(1, 32, 32), {0: 6001}, "q8_0")
    cells = cache.cells(0, 0)
    keys, values = torch.zeros(6001, 1, 32), torch.ones(6001, 1, 32)
    keys[70:90], values[70:90] = 12.0, 0.0  # exp(12) times the weight of each of the others
    cells.k.store(slice(0, 6001), keys)
    cells.v.store(slice(0, 6001), values)
    out = cpu().attention(torch.full((1, 1, 32), 1 / 32), cache, 0, ubatch, 1.0, poisoned(1, 1, 32))
    torch.testing.assert_close(out.double(), exact_attention(torch.full((1, 1, 32), 1 / 32), cache, ubatch, 1.0))


def test_short_and_long_spans_in_one_ubatch() -> None:
    lengths = {0: (90, 1), 1: (0, 30), 2: (64, 1), 3: (10, 5), 4: (500, 33), 5: (3, 8)}
    check(4, KVLayer(2, 32, 32), lengths, "f16", 2e-6, kernels=exact())


def test_strided_queries() -> None:
    torch.manual_seed(0)
    layer = KVLayer(2, 32, 32)
    for lengths in ({0: (40, 1), 1: (70, 1)}, {0: (40, 20)}):
        ubatch = ubatch_of(lengths)
        cache = filled_cache(layer, {seq_id: sum(length) for seq_id, length in lengths.items()})
        qkv = torch.randn(ubatch.n_tokens, 8 * 32)
        q = qkv[:, : 4 * 32].unflatten(1, (4, 32))
        out = exact().attention(q, cache, 0, ubatch, 0.2, poisoned(ubatch.n_tokens, 4, 32))
        torch.testing.assert_close(out.double(), exact_attention(q, cache, ubatch, 0.2), rtol=0, atol=2e-6)


def test_scores_too_large_for_exp() -> None:
    """exp overflows beyond 88: only differences to the maximum may be taken."""
    torch.manual_seed(0)
    ubatch, cache = ubatch_of({0: (300, 1)}), filled_cache(KVLayer(2, 64, 64), {0: 301})
    q = torch.randn(1, 2, 64)
    out = cpu().attention(q, cache, 0, ubatch, 40.0, poisoned(1, 2, 64))
    torch.testing.assert_close(out.double(), exact_attention(q, cache, ubatch, 40.0), rtol=0, atol=1e-4)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """Bits: the cut of a run into parts must not follow the batch."""
    torch.manual_seed(0)
    cache = filled_cache(KVLayer(2, 32, 32), {0: 700, 1: 90, 2: 1200})
    q = torch.randn(3, 4, 32)
    together = cpu().attention(q, cache, 0, ubatch_of({0: (699, 1), 1: (89, 1), 2: (1199, 1)}), 0.2, poisoned(3, 4, 32))
    alone = cpu().attention(q[2:], cache, 0, ubatch_of({2: (1199, 1)}), 0.2, poisoned(1, 4, 32))
    assert torch.equal(together[2:], alone)


def test_a_draft_has_the_bits_of_decoding() -> None:
    """However many tokens it has: what is verified is compared with what would have been decoded."""
    torch.manual_seed(0)
    cache, ubatch = filled_cache(KVLayer(2, 32, 32), {0: 600}), ubatch_of({0: (580, 20)})
    q = torch.randn(20, 4, 32)
    verified = replace(ubatch, output_rows=np.arange(20))
    together = cpu().attention(q, cache, 0, verified, 0.2, poisoned(20, 4, 32))
    for row in range(20):
        alone = cpu().attention(q[row:][:1], cache, 0, ubatch_of({0: (580 + row, 1)}), 0.2, poisoned(1, 4, 32))
        assert torch.equal(together[row:][:1], alone)


def test_the_reference_agrees() -> None:
    torch.manual_seed(0)
    ubatch = ubatch_of({0: (300, 1), 1: (0, 40)})
    cache = filled_cache(KVLayer(2, 64, 64, window=33), {0: 301, 1: 40})
    q = torch.randn(41, 4, 64)
    ours = exact().attention(q, cache, 0, ubatch, 0.125, poisoned(41, 4, 64))
    theirs = ReferenceKernels().attention(q, cache, 0, ubatch, 0.125, poisoned(41, 4, 64))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def test_scratch_is_what_the_budget_was_told() -> None:
    """Many rows, wide heads, long prompts: nothing is held beyond ``scratch_bytes``."""
    kernels = CpuKernels("f32")  # takes more of it
    for n_heads, layer, lengths in (
        (64, KVLayer(8, 128, 128), dict.fromkeys(range(40), (0, 1))),
        (8, KVLayer(1, 256, 256), {0: (0, 300)}),
        (40, KVLayer(40, 64, 64), {0: (0, 30)}),
    ):
        ubatch = ubatch_of(lengths)
        cache = filled_cache(layer, {seq_id: sum(length) for seq_id, length in lengths.items()})
        q = torch.randn(ubatch.n_tokens, n_heads, layer.head_dim)
        kernels.attention(q, cache, 0, ubatch, 0.1, poisoned(ubatch.n_tokens, n_heads, layer.head_dim_v))
        cache.close()
    kernels.linear(torch.ones(40, 4096), torch.ones(600, 4096, dtype=torch.float16), None, poisoned(40, 600))
    held = kernels._scratch.nbytes + kernels.linear._tile.nbytes
    assert 0 < held <= kernels.scratch_bytes(512, 1 << 17)
