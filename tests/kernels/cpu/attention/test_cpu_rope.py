"""Rotation and the writing of cells, against the reference and the rules of each cell type."""

from __future__ import annotations

import pytest
import torch
from support.cpu_cases import DTYPES, cpu, few_of, filled_cache, ubatch_of

from elastikv.batch import UBatch
from elastikv.kernels.reference import ReferenceKernels
from elastikv.memory import KVCache, KVLayer
from elastikv.memory.base import CellType

SPANS = {0: (0, 1), 1: (3, 5), 2: (40, 2)}


def tensors(n: int, layer: KVLayer, n_heads: int, rotary: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    q_width, k_width = n_heads * layer.head_dim, layer.n_kv_heads * layer.head_dim
    qkv = torch.randn(n, q_width + k_width + layer.n_kv_heads * layer.head_dim_v)
    q = qkv[:, :q_width].unflatten(1, (n_heads, -1))
    k = qkv[:, q_width : q_width + k_width].unflatten(1, (layer.n_kv_heads, -1))
    v = qkv[:, q_width + k_width :].unflatten(1, (layer.n_kv_heads, -1))
    angles = torch.randn(n, rotary // 2)
    return q, k, v, angles.cos(), angles.sin()


def store(
    kernels: object, cache: KVCache, ubatch: UBatch, layer: KVLayer, rotary: int, norm: bool
) -> list[torch.Tensor]:
    """Everything that rope_store wrote: q, k, and the spans' cells."""
    q, k, v, cos, sin = tensors(ubatch.n_tokens, layer, 4, rotary)
    weights = (torch.rand(layer.head_dim), torch.rand(layer.head_dim), 1e-6)
    kernels.rope_store(q, k, v, cos, sin, weights if norm else None, cache, 0, ubatch)  # type: ignore[attr-defined]
    written = [q, k]
    for span in ubatch.spans:
        cells = cache.cells(0, span.seq_id)
        rows = slice(span.pos, span.end)
        written += [plane[rows].clone() for part in (cells.k, cells.v) for plane in part.planes]
    return written


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("cell_type", few_of(["f32", "f16", "bf16", "q8_0"], "f32", "f16", "q8_0"))
@pytest.mark.parametrize(
    ("layer", "rotary"), [(KVLayer(2, 64, 64), 64), (KVLayer(2, 40, 24), 20), (KVLayer(1, 6, 33), 2)]
)
def test_the_reference_agrees(layer: KVLayer, rotary: int, cell_type: CellType, norm: bool) -> None:
    ubatch = ubatch_of(SPANS)
    lengths = {seq_id: sum(length) for seq_id, length in SPANS.items()}
    ours = store(cpu(), filled_cache(layer, lengths, cell_type), ubatch, layer, rotary, norm)
    theirs = store(ReferenceKernels(), filled_cache(layer, lengths, cell_type), ubatch, layer, rotary, norm)
    one_step = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.int8: 1}
    for mine, expected in zip(ours, theirs, strict=True):
        # sums in another order may move a value across one rounding boundary, never further
        torch.testing.assert_close(mine, expected, rtol=1e-6, atol=one_step[mine.dtype])
        assert (mine != expected).float().mean() < 0.02 or mine.dtype == torch.float32


def test_cells_outside_the_spans_stay() -> None:
    layer = KVLayer(2, 32, 32)
    cache = filled_cache(layer, {1: 20}, "f16")
    before = cache.cells(0, 1).k.planes[0].clone()
    q, k, v, cos, sin = tensors(3, layer, 4, 32)
    cpu().rope_store(q, k, v, cos, sin, None, cache, 0, ubatch_of({1: (7, 3)}))
    after = cache.cells(0, 1).k.planes[0]
    assert torch.equal(after[:7], before[:7])
    assert torch.equal(after[10:20], before[10:20])
    assert after[20:].isnan().all()


@pytest.mark.parametrize("cell_type", few_of(["f16", "bf16"], "f16"))
def test_values_round_to_nearest_even(cell_type: CellType) -> None:
    """Ties, subnormals, the largest values, infinity and NaN, as torch rounds them."""
    layer = KVLayer(1, 16, 16)
    cache = filled_cache(layer, {0: 1}, cell_type)
    q, k, v, cos, sin = tensors(1, layer, 4, 16)
    odd_ones = [1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-11, 6e-8, 1e-7, 65504.0]
    v[:] = torch.tensor([*odd_ones, 65519.0, 3.4e38, torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 1e-40])
    cpu().rope_store(q, k, v, cos, sin, None, cache, 0, ubatch_of({0: (0, 1)}))
    torch.testing.assert_close(
        cache.cells(0, 0).v.planes[0][0], v[0].to(DTYPES[cell_type]), rtol=0, atol=0, equal_nan=True
    )


def test_a_block_of_zeros_has_no_scale() -> None:
    layer = KVLayer(1, 32, 32)
    cache = filled_cache(layer, {0: 1}, "q8_0")
    q, k, v, cos, sin = tensors(1, layer, 4, 32)
    v[:] = 0
    cpu().rope_store(q, k, v, cos, sin, None, cache, 0, ubatch_of({0: (0, 1)}))
    cells = cache.cells(0, 0)
    values, scales = cells.v.planes
    assert not values[0].any()
    assert not scales[0].any()
    assert cells.k.planes[0][0].abs().max() == 127


def test_enough_tokens_for_all_threads() -> None:
    layer = KVLayer(2, 64, 64)
    ubatch = ubatch_of({0: (5, 90)})
    ours = store(cpu(), filled_cache(layer, {0: 95}, "f32"), ubatch, layer, 64, True)
    theirs = store(ReferenceKernels(), filled_cache(layer, {0: 95}, "f32"), ubatch, layer, 64, True)
    for mine, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)
