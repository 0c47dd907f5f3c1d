"""Every kernel in plain torch: the oracle that the fast ones are tested against, and what serves where they cannot run.

Scratch is bounded by working through cells and rows in pieces. The pieces lie at fixed positions and are copied out
of the cells, so that no result depends on a stream's capacity or on where its cells lie.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch.nn.functional import gelu, silu, softplus
from typing_extensions import override

from elastikv.batch import Span, UBatch
from elastikv.errors import InvalidRequest
from elastikv.kernels import delta_rule
from elastikv.kernels.composed import ComposedKernels
from elastikv.kernels.weights import Weight
from elastikv.memory.base import Cells
from elastikv.memory.kv_cache import KVCache
from elastikv.memory.recurrent import RecurrentMemory

_CHUNK_CELLS = 512
_TILE_VALUES = 1 << 19
"""Values that one temporary tensor may hold: 2 MiB of f32, which stays in the processor's cache."""
_TEMPORARIES = 8
"""Tiles that one operation holds at most: chunks of the delta rule for the largest model."""


class ReferenceKernels(ComposedKernels):
    """Kernels in torch: slow, and written to be compared with. They multiply dense weights only."""

    name = "reference"
    packed_types: frozenset[str] = frozenset()

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    @override
    def linear(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor:
        if not isinstance(weight, torch.Tensor):
            raise InvalidRequest(f"the reference kernels multiply dense weights only, not {weight.type}")
        if weight.dtype == torch.float32:
            torch.mm(x, weight.t(), out=out)
        else:
            for rows in _tiles(*weight.shape):
                torch.mm(x, weight[rows].float().t(), out=out[:, rows])
        return out if bias is None else out.add_(bias)

    @override
    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> torch.Tensor:
        for rows in _tiles(len(x), x[0].numel()):
            scale = x[rows].square().mean(-1, keepdim=True).add_(eps).rsqrt_()
            torch.mul(x[rows], scale, out=out[rows]).mul_(weight)
        return out

    @override
    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
    ) -> torch.Tensor:
        return self.rms_norm(residual.add_(x), weight, eps, out)

    @override
    def silu_mul(self, gate_up: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        for rows in _tiles(*out.shape):
            torch.mul(silu(gate[rows]), up[rows], out=out[rows])
        return out

    @override
    def gelu_mul(self, gate_up: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        for rows in _tiles(*out.shape):
            torch.mul(gelu(gate[rows], approximate="tanh"), up[rows], out=out[rows])
        return out

    @override
    def route(
        self, x: torch.Tensor, router: torch.Tensor, n_experts: int, n_used: int, normalised: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = torch.mm(x, router.t())
        weights, experts = logits[:, :n_experts].softmax(-1).topk(n_used)
        if normalised:
            weights /= weights.sum(-1, keepdim=True)
        experts, order = experts.sort(-1)
        return torch.cat([weights.gather(1, order), logits[:, n_experts:].sigmoid()], dim=1), experts

    @override
    def sigmoid_mul(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        for rows in _tiles(len(x), x[0].numel()):
            x[rows].mul_(gate[rows].sigmoid())
        return x

    @override
    def gated_rms_norm(
        self, x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
    ) -> torch.Tensor:
        self.rms_norm(x, weight, eps, out)
        for rows in _tiles(len(x), x[0].numel()):
            out[rows].mul_(silu(gate[rows]))
        return out

    @override
    def rope_store(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        norms: tuple[torch.Tensor, torch.Tensor, float] | None,
        cache: KVCache,
        layer: int,
        ubatch: UBatch,
    ) -> None:
        if norms is not None:
            q_norm, k_norm, eps = norms
            self.rms_norm(q, q_norm, eps, out=q)
            self.rms_norm(k, k_norm, eps, out=k)
        _rotate(q, cos, sin)
        _rotate(k, cos, sin)
        for span in ubatch.spans:
            cells = cache.cells(layer, span.seq_id)
            target = slice(span.pos - cells.first, span.end - cells.first)
            rows = slice(span.start, span.stop)
            cells.k.store(target, k[rows])
            cells.v.store(target, v[rows])

    @override
    def attention(
        self, q: torch.Tensor, cache: KVCache, layer: int, ubatch: UBatch, scale: float, out: torch.Tensor
    ) -> torch.Tensor:
        window = cache.layers[layer].window
        for span in ubatch.spans:
            cells = cache.cells(layer, span.seq_id)
            for piece in _pieces(span, _TILE_VALUES // (q.shape[1] * _CHUNK_CELLS)):
                rows = slice(piece.start, piece.stop)
                out[rows] = _attend(q[rows], cells, piece, window, scale)
        return out

    @override
    def causal_conv(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        memory: RecurrentMemory,
        layer: int,
        ubatch: UBatch,
        out: torch.Tensor,
    ) -> torch.Tensor:
        for span in ubatch.spans:
            before = memory.source(layer, span.seq_id)[0].t()
            for piece in _pieces(span, _TILE_VALUES // x.shape[1]):
                rows = slice(piece.start, piece.stop)
                inputs = torch.cat([before, x[rows]])
                sums = inputs[: piece.n_tokens] * weight[:, 0]
                for tap in range(1, weight.shape[1]):
                    sums.addcmul_(inputs[tap : tap + piece.n_tokens], weight[:, tap])
                out[rows] = silu(sums)
                before = inputs[piece.n_tokens :]
            memory.target(layer, span.seq_id)[0].copy_(before.t())
        return out

    @override
    def delta_gates(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        rate: torch.Tensor,
        bias: torch.Tensor,
        decay: torch.Tensor,
        beta: torch.Tensor,
    ) -> None:
        torch.mul(softplus(a + bias), rate, out=decay)
        torch.sigmoid(b, out=beta)

    @override
    def gated_delta_rule(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        decay: torch.Tensor,
        beta: torch.Tensor,
        memory: RecurrentMemory,
        layer: int,
        ubatch: UBatch,
        out: torch.Tensor,
    ) -> torch.Tensor:
        for span in ubatch.spans:
            rows = slice(span.start, span.stop)
            state = memory.source(layer, span.seq_id)[1]
            state = delta_rule.run(state, q[rows], k[rows], v[rows], decay[rows], beta[rows], out[rows])
            memory.target(layer, span.seq_id)[1].copy_(state)
        return out

    @override
    def scratch_bytes(self, n_ubatch: int, max_capacity: int) -> int:
        return 4 * _TILE_VALUES * _TEMPORARIES


def _tiles(n_rows: int, width: int) -> Iterator[slice]:
    """Rows, as many at a time as fit a tile."""
    step = max(_TILE_VALUES // width, 1)
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def _pieces(span: Span, n_tokens: int) -> Iterator[Span]:
    """A span as spans of at most ``n_tokens`` (at least one) tokens."""
    step = max(n_tokens, 1)
    for start in range(span.start, span.stop, step):
        yield Span(span.seq_id, start, min(start + step, span.stop), span.pos + start - span.start)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotate the first dimensions of ``[n, heads, d]`` in place, each with the one half the rotary width behind it."""
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    rotated = first * cos - second * sin
    second.mul_(cos).addcmul_(first, sin)
    first.copy_(rotated)


def _attend(q: torch.Tensor, cells: Cells, span: Span, window: int | None, scale: float) -> torch.Tensor:
    """Softmax attention of consecutive queries ``[n, n_heads, d]``, chunk of cells by chunk.

    Keeps a running maximum and sum per query and rescales what it has when the maximum grows
    (Milakov and Gimelshein, arXiv:1805.02867). Query heads that share a K head lie side by side.
    """
    n_tokens, n_heads, _ = q.shape
    n_kv_heads, dv = cells.v.n_heads, cells.v.dim
    n_group = n_heads // n_kv_heads
    # [n_kv_heads, n_group * n_tokens, d]
    grouped = (q * scale).view(n_tokens, n_kv_heads, n_group, -1).permute(1, 2, 0, 3).flatten(1, 2)
    top = q.new_full((n_kv_heads, n_group * n_tokens, 1), -math.inf)
    total = torch.zeros_like(top)
    mixed = q.new_zeros((n_kv_heads, n_group * n_tokens, dv))
    for p0, p1 in _cell_chunks(cells.first, span, window):
        keys, values = _load_chunk(cells, p0, p1)
        scores = grouped @ keys.transpose(1, 2)
        _mask(scores.view(n_kv_heads, n_group, n_tokens, p1 - p0), span, p0, p1, window)
        new_top = torch.maximum(top, scores.amax(-1, keepdim=True))
        # a query that has seen no cell yet has -inf here; exp(-inf - 0) = 0 keeps it at nothing
        base = new_top.masked_fill(new_top == -math.inf, 0)
        weights = scores.sub_(base).exp_()
        shrink = (top - base).exp_()
        total.mul_(shrink).add_(weights.sum(-1, keepdim=True))
        mixed.mul_(shrink).baddbmm_(weights, values)
        top = new_top
    return mixed.div_(total).view(n_kv_heads, n_group, n_tokens, dv).permute(2, 0, 1, 3).flatten(1, 2)


def _cell_chunks(first: int, span: Span, window: int | None) -> Iterator[tuple[int, int]]:
    """Position ranges that hold every cell the span sees, split at fixed positions."""
    begin = first if window is None else max(first, span.pos - window + 1)
    while begin < span.end:
        end = min((begin // _CHUNK_CELLS + 1) * _CHUNK_CELLS, span.end)
        yield begin, end
        begin = end


def _load_chunk(cells: Cells, p0: int, p1: int) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V of positions ``[p0, p1)`` as f32 ``[n_kv_heads, p1 - p0, dim]``."""
    rows = slice(p0 - cells.first, p1 - cells.first)
    return cells.k.load(rows).transpose(0, 1), cells.v.load(rows).transpose(0, 1)


def _mask(scores: torch.Tensor, span: Span, p0: int, p1: int, window: int | None) -> None:
    """Hide cells after a query, and those that its window has left behind; scores ``[..., n_tokens, p1 - p0]``."""
    hides_later = p1 - 1 > span.pos
    hides_earlier = window is not None and p0 <= span.end - 1 - window
    if not hides_later and not hides_earlier:
        return
    of_query = torch.arange(span.pos, span.end, device=scores.device)
    distance = of_query.unsqueeze(1) - torch.arange(p0, p1, device=scores.device)
    hidden = distance < 0
    if window is not None:
        hidden |= distance >= window
    scores.masked_fill_(hidden, -math.inf)
