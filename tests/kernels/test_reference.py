"""The torch kernels against plain formulas in float64: they are the oracle, so nothing clever here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from elastikv.batch import Batch, SeqTokens, UBatch
from elastikv.errors import InvalidRequest
from elastikv.kernels import delta_rule, select_kernels
from elastikv.kernels.reference import ReferenceKernels
from elastikv.kernels.weights import PackedTensor
from elastikv.memory import Budget, KVCache, KVLayer, MemoryOptions, RecurrentLayer, RecurrentMemory, make_memory

N_HEADS, N_KV_HEADS, DIM, DIM_V = 6, 2, 40, 24
KERNELS = ReferenceKernels()
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
CELL_ERROR = {"f32": 1e-6, "f16": 1e-3, "bf16": 8e-3, "q8_0": 1.5e-2}


def open_cache(window: int | None = None, cell_type: str = "f32", n_ctx: int = 2048) -> KVCache:
    layer = KVLayer(N_KV_HEADS, DIM, DIM_V, window)
    options = MemoryOptions(n_ctx=n_ctx, initial=8, k_type=cell_type, v_type=cell_type)  # type: ignore[arg-type]
    cache = make_memory([layer, layer], options, Budget.parse("none"))
    assert isinstance(cache, KVCache)
    return cache


def begin(cache: KVCache | RecurrentMemory, lengths: dict[int, int]) -> UBatch:
    batch = Batch(SeqTokens(seq_id, [0] * n) for seq_id, n in lengths.items())
    (ubatch,) = cache.init_batch(batch, 1 << 20)
    cache.apply(ubatch)
    return ubatch


def poison_unused(cache: KVCache, layer: int) -> None:
    for seq_id in cache.seq_ids():
        cells = cache.cells(layer, seq_id)
        used = cache.n_cells(seq_id)
        for tensor in (cells.k.planes[0], cells.v.planes[0]):
            if tensor.is_floating_point():
                tensor[used:] = math.nan


def no_rotation(n_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(n_tokens, DIM // 2), torch.zeros(n_tokens, DIM // 2)


def naive_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pos: int, window: int | None, scale: float
) -> torch.Tensor:
    """q ``[n, heads, d]`` at ``pos ...`` over all k and v of the sequence ``[cells, kv_heads, d]``, in float64."""
    k, v = (x.double().repeat_interleave(N_HEADS // N_KV_HEADS, dim=1) for x in (k, v))
    scores = torch.einsum("qhd,chd->hqc", q.double(), k) * scale
    distance = torch.arange(pos, pos + len(q)).unsqueeze(1) - torch.arange(len(k))
    hidden = (distance < 0) | (distance >= (window or 1 << 30))
    weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
    return torch.einsum("hqc,chd->qhd", weights, v)


@pytest.mark.parametrize("cell_type", CELL_ERROR)
@pytest.mark.parametrize("window", [None, 1, 9, 700])
def test_attention_of_unequal_sequences(window: int | None, cell_type: str) -> None:
    torch.manual_seed(0)
    cache = open_cache(window, cell_type)
    held: dict[int, tuple[torch.Tensor, torch.Tensor]] = {
        seq_id: (torch.empty(0, N_KV_HEADS, DIM), torch.empty(0, N_KV_HEADS, DIM_V)) for seq_id in range(3)
    }
    for lengths in ({0: 600, 1: 5}, {0: 1, 1: 300, 2: 1}, {0: 140, 1: 1, 2: 7}):
        ubatch = begin(cache, lengths)
        n = ubatch.n_tokens
        q, k, v = torch.randn(n, N_HEADS, DIM), torch.randn(n, N_KV_HEADS, DIM), torch.randn(n, N_KV_HEADS, DIM_V)
        KERNELS.rope_store(q, k, v, *no_rotation(n), None, cache, 1, ubatch)
        poison_unused(cache, 1)
        out = torch.full((n, N_HEADS, DIM_V), math.nan)
        KERNELS.attention(q, cache, 1, ubatch, 0.3, out)
        for span in ubatch.spans:
            rows = slice(span.start, span.stop)
            old_k, old_v = held[span.seq_id]
            held[span.seq_id] = (torch.cat([old_k, k[rows]]), torch.cat([old_v, v[rows]]))
            wanted = naive_attention(q[rows], *held[span.seq_id], span.pos, window, 0.3)
            error = (out[rows].double() - wanted).abs().max().item()
            assert error < 5 * CELL_ERROR[cell_type]
        cache.commit()


def test_first_cell_need_not_be_position_zero() -> None:
    torch.manual_seed(0)
    cache = open_cache()
    ubatch = begin(cache, {0: 50})
    q, k, v = torch.randn(50, N_HEADS, DIM), torch.randn(50, N_KV_HEADS, DIM), torch.randn(50, N_KV_HEADS, DIM_V)
    KERNELS.rope_store(q, k, v, *no_rotation(50), None, cache, 0, ubatch)
    cache.commit()
    assert cache.seq_rm(0, 0, 20)
    ubatch = begin(cache, {0: 2})
    q2, k2, v2 = torch.randn(2, N_HEADS, DIM), torch.randn(2, N_KV_HEADS, DIM), torch.randn(2, N_KV_HEADS, DIM_V)
    KERNELS.rope_store(q2, k2, v2, *no_rotation(2), None, cache, 0, ubatch)
    out = KERNELS.attention(q2, cache, 0, ubatch, 0.3, torch.empty(2, N_HEADS, DIM_V))
    wanted = naive_attention(q2, torch.cat([k[20:], k2]), torch.cat([v[20:], v2]), 30, None, 0.3)
    torch.testing.assert_close(out.double(), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rotary", [DIM, 12])
@pytest.mark.parametrize("normed", [False, True])
def test_rope_store_rotates_views_in_place_and_fills_cells(normed: bool, rotary: int) -> None:
    torch.manual_seed(0)
    cache = open_cache()
    begin(cache, {7: 3})
    cache.commit()
    ubatch = begin(cache, {7: 4, 8: 2})
    wide = torch.randn(6, N_HEADS + 2 * N_KV_HEADS, DIM)
    q, k, v = wide.split([N_HEADS, N_KV_HEADS, N_KV_HEADS], dim=1)
    v = v[..., :DIM_V]
    angle = torch.randn(6, rotary // 2)
    weights = (torch.rand(DIM) + 0.5, torch.rand(DIM) + 0.5)
    wanted_q, wanted_k = (
        rotated(normalised(x, weight) if normed else x.double(), angle)
        for x, weight in zip((q, k), weights, strict=True)
    )
    KERNELS.rope_store(q, k, v, angle.cos(), angle.sin(), (*weights, 1e-5) if normed else None, cache, 0, ubatch)
    torch.testing.assert_close(q.double(), wanted_q, atol=1e-5, rtol=0)
    torch.testing.assert_close(k.double(), wanted_k, atol=1e-5, rtol=0)
    assert torch.equal(cache.cells(0, 7).k.load(slice(3, 7)), k[:4])
    assert torch.equal(cache.cells(0, 7).v.load(slice(3, 7)), v[:4])
    assert torch.equal(cache.cells(0, 8).k.load(slice(0, 2)), k[4:])
    assert torch.equal(cache.cells(0, 8).v.load(slice(0, 2)), v[4:])


def normalised(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


def rotated(x: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """As complex numbers: the first half is the real part of what the second half is the imaginary part of."""
    half = angle.shape[1]
    number = torch.complex(x[..., :half], x[..., half : 2 * half]) * torch.polar(
        torch.ones_like(angle, dtype=torch.float64), angle.double()
    ).unsqueeze(1)
    return torch.cat([number.real, number.imag, x[..., 2 * half :]], dim=-1)


def test_norms_and_gates() -> None:
    torch.manual_seed(0)
    x, residual, weight = torch.randn(5, 33), torch.randn(5, 33), torch.rand(33)
    out = torch.full_like(x, math.nan)
    torch.testing.assert_close(KERNELS.rms_norm(x, weight, 1e-5, out).double(), normalised(x, weight), **CLOSE)
    summed = residual + x
    KERNELS.add_rms_norm(x, residual, weight, 1e-5, out)
    assert torch.equal(residual, summed)
    torch.testing.assert_close(out.double(), normalised(summed, weight), **CLOSE)

    gate_up = torch.randn(5, 66)
    gate, up = gate_up.double().chunk(2, dim=1)
    torch.testing.assert_close(KERNELS.silu_mul(gate_up, out).double(), gate * gate.sigmoid() * up, **CLOSE)

    heads, gates = torch.randn(5, 3, 33), torch.randn(5, 4, 33)[:, 1:]
    wanted = normalised(heads, weight) * gates.double() * gates.double().sigmoid()
    KERNELS.gated_rms_norm(heads, gates, weight, 1e-5, out=heads)  # in place, as the models do
    torch.testing.assert_close(heads.double(), wanted, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n_tokens", [1, 9])
def test_linear_into_strided_rows(n_tokens: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(70, 50).to(dtype), torch.randn(70), torch.randn(n_tokens, 50)
    out = torch.full((n_tokens, 100), math.nan)
    KERNELS.linear(x, weight, bias, out[:, 20:90])
    wanted = x.double() @ weight.double().t() + bias.double()
    torch.testing.assert_close(out[:, 20:90].double(), wanted, atol=1e-4, rtol=0)
    assert out[:, :20].isnan().all()
    assert out[:, 90:].isnan().all()


def test_linear_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elastikv.kernels.reference._TILE_VALUES", 128)
    weight, x = torch.randn(70, 50).bfloat16(), torch.randn(3, 50)
    out = KERNELS.linear(x, weight, None, torch.full((3, 70), math.nan))
    torch.testing.assert_close(out, x @ weight.float().t(), atol=1e-4, rtol=0)


def test_linear_refuses_packed_weights() -> None:
    packed = PackedTensor("q8_0", (1, 32), torch.zeros(1, 34, dtype=torch.uint8))
    with pytest.raises(InvalidRequest, match="q8_0"):
        KERNELS.linear(torch.zeros(1, 32), packed, None, torch.zeros(1, 1))


def open_states(channels: int, width: int, heads: int, dk: int, dv: int) -> RecurrentMemory:
    layer = RecurrentLayer(((channels, width - 1), (heads, dk, dv)))
    memory = make_memory([layer], MemoryOptions(n_ctx=4096), Budget.parse("none"))
    assert isinstance(memory, RecurrentMemory)
    return memory


@pytest.mark.parametrize("width", [2, 4])
def test_convolution_goes_on_where_the_sequence_stopped(width: int) -> None:
    torch.manual_seed(0)
    memory = open_states(10, width, 1, 1, 1)
    weight = torch.randn(10, width)
    inputs = {seq_id: torch.randn(40, 10) for seq_id in (0, 1)}
    outputs: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    done = {0: 0, 1: 0}
    for lengths in ({0: 1, 1: 20}, {0: 2, 1: 1}, {0: 30, 1: 1}, {0: 7, 1: 18}):
        ubatch = begin(memory, lengths)
        wide = torch.cat([inputs[s][done[s] : done[s] + n] for s, n in lengths.items()])
        strided = torch.cat([wide, torch.full_like(wide, math.nan)], dim=1)[:, :10]
        out = torch.full((ubatch.n_tokens, 10), math.nan)
        KERNELS.causal_conv(strided, weight, memory, 0, ubatch, out)
        for span in ubatch.spans:
            outputs[span.seq_id].append(out[span.start : span.stop])
            done[span.seq_id] += span.n_tokens
        memory.commit()
    for seq_id, x in inputs.items():
        padded = torch.cat([torch.zeros(width - 1, 10), x]).double()
        sums = sum(padded[tap : tap + 40] * weight[:, tap].double() for tap in range(width))
        torch.testing.assert_close(torch.cat(outputs[seq_id]).double(), sums * torch.sigmoid(sums), **CLOSE)


def naive_delta_rule(
    state: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, decay: torch.Tensor, beta: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token after the other, in float64."""
    n_group = v.shape[1] // q.shape[1]
    q, k, v, decay, beta = (x.double() for x in (q, k, v, decay, beta))
    q, k = ((x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()).repeat_interleave(n_group, 1) for x in (q, k))
    state = state.double()
    out = []
    for i in range(len(q)):
        state = decay[i].exp()[:, None, None] * state
        missing = v[i] - torch.einsum("hk,hkv->hv", k[i], state)
        state = state + torch.einsum("hk,hv->hkv", k[i], beta[i][:, None] * missing)
        out.append(torch.einsum("hk,hkv->hv", q[i] * q.shape[-1] ** -0.5, state))
    return torch.stack(out), state


@pytest.mark.parametrize("n_tokens", [1, 8, 9, 64, 65, 200])
@pytest.mark.parametrize("strongest_decay", [0.1, 30.0])
def test_delta_rule_recurrent_and_in_chunks(n_tokens: int, strongest_decay: float) -> None:
    torch.manual_seed(0)
    state = torch.randn(6, 12, 20)
    q, k, v = torch.randn(n_tokens, 3, 12), torch.randn(n_tokens, 3, 12), torch.randn(n_tokens, 6, 20)
    decay, beta = -strongest_decay * torch.rand(n_tokens, 6), torch.rand(n_tokens, 6)
    before = state.clone()
    out = torch.full_like(v, math.nan)
    after = delta_rule.run(state, q, k, v, decay, beta, out)
    wanted_out, wanted_after = naive_delta_rule(state, q, k, v, decay, beta)
    assert torch.equal(state, before)
    torch.testing.assert_close(out.double(), wanted_out, atol=2e-5, rtol=0)
    torch.testing.assert_close(after.double(), wanted_after, atol=2e-5, rtol=0)


def test_delta_rule_keeps_states_of_sequences_apart_until_commit() -> None:
    torch.manual_seed(0)
    memory = open_states(4, 2, 6, 12, 20)
    total = {0: 30, 1: 110}
    inputs = {
        s: (
            torch.randn(n, 3, 12),
            torch.randn(n, 3, 12),
            torch.randn(n, 6, 20),
            -torch.rand(n, 6),
            torch.rand(n, 6),
        )
        for s, n in total.items()
    }

    def run(lengths: dict[int, int], done: dict[int, int]) -> dict[int, torch.Tensor]:
        ubatch = begin(memory, lengths)
        rows = [tuple(x[done[s] : done[s] + n] for x in inputs[s]) for s, n in lengths.items()]
        q, k, v, decay, beta = (torch.cat(parts) for parts in zip(*rows, strict=True))
        out = torch.full_like(v, math.nan)
        KERNELS.gated_delta_rule(q, k, v, decay, beta, memory, 0, ubatch, out)
        return {span.seq_id: out[span.start : span.stop] for span in ubatch.spans}

    first = run({0: 10, 1: 100}, {0: 0, 1: 0})
    memory.commit()
    run({0: 20, 1: 10}, {0: 10, 1: 100})
    memory.rollback()
    second = run({0: 20, 1: 10}, {0: 10, 1: 100})
    for seq_id, given in inputs.items():
        wanted, _ = naive_delta_rule(torch.zeros(6, 12, 20), *given)
        got = torch.cat([first[seq_id], second[seq_id]])
        torch.testing.assert_close(got.double(), wanted, atol=2e-5, rtol=0)


def test_selection_by_name() -> None:
    assert select_kernels("reference").name == "reference"
    with pytest.raises(InvalidRequest, match="'fastest'"):
        select_kernels("fastest")
    with pytest.raises(InvalidRequest, match="must be auto or f32, got 'f16'"):
        select_kernels("reference", attention_precision="f16")  # type: ignore[arg-type]


def test_attention_scratch_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor made on the way is larger than the scratch that is declared for all of them."""
    cache = open_cache(n_ctx=8192)
    ubatch = begin(cache, {0: 4000})
    q, k, v = torch.randn(4000, N_HEADS, DIM), torch.randn(4000, N_KV_HEADS, DIM), torch.randn(4000, N_KV_HEADS, DIM_V)
    KERNELS.rope_store(q, k, v, *no_rotation(4000), None, cache, 0, ubatch)
    largest = 0
    matmul = torch.Tensor.__matmul__

    def watched(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        product = matmul(a, b)
        largest = max(largest, product.nbytes)
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    KERNELS.attention(q, cache, 0, ubatch, 0.3, torch.empty(4000, N_HEADS, DIM_V))
    assert 0 < largest < KERNELS.scratch_bytes(4000, np.iinfo(np.int32).max)
