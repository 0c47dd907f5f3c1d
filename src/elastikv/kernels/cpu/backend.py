"""The numba kernels behind the ``Kernels`` protocol: addresses and shapes are taken here, work is done elsewhere."""

from __future__ import annotations

import torch
from typing_extensions import override

from elastikv.batch import UBatch
from elastikv.errors import InvalidRequest
from elastikv.kernels.base import AttentionPrecision
from elastikv.kernels.composed import Attention, ComposedKernels, DeltaNet, Experts, Mlp
from elastikv.kernels.cpu import norms, recurrent, routing
from elastikv.kernels.cpu.attention import decode as decode_attention
from elastikv.kernels.cpu.attention import prefill as prefill_attention
from elastikv.kernels.cpu.attention import rope
from elastikv.kernels.cpu.attention.products_f32 import F32_PRODUCTS
from elastikv.kernels.cpu.attention.products_int16 import INT16_PRODUCTS
from elastikv.kernels.cpu.experts import MAX_TOKENS
from elastikv.kernels.cpu.formats import CELLS, WEIGHTS
from elastikv.kernels.cpu.formats.plain import F32
from elastikv.kernels.cpu.fused import (
    FusedAttention,
    FusedDeltaNet,
    FusedExperts,
    FusedMlp,
    arguments_of,
    experts_arguments_of,
)
from elastikv.kernels.cpu.matmul import skinny_f32
from elastikv.kernels.cpu.matmul.linear import SCRATCH_BYTES, LinearKernel, matrix_of
from elastikv.kernels.cpu.plan import Planner, Rows, state_table
from elastikv.kernels.cpu.simd.features import has_fast_int16
from elastikv.kernels.weights import AttentionWeights, DeltaNetWeights, ExpertsWeights, MlpWeights
from elastikv.memory.kv_cache import KVCache
from elastikv.memory.recurrent import RecurrentMemory

_SCRATCH_FLOATS = 1 << 21
"""float32 values of scratch for attention: what prefill needs for heads of 256, and several rows in decode."""


class CpuKernels(ComposedKernels):
    """Kernels for processors, compiled by numba. Not for use by several threads at once: scratch is shared."""

    name = "cpu"
    device = torch.device("cpu")
    packed_types = frozenset(WEIGHTS)
    linear: LinearKernel

    def __init__(self, attention_precision: AttentionPrecision = "auto") -> None:
        """attention_precision: of the products of attention over prompts, see ``base.AttentionPrecision``."""
        in_integers = attention_precision == "auto" and has_fast_int16()
        self._products = INT16_PRODUCTS if in_integers else F32_PRODUCTS
        self.linear = LinearKernel()
        self._plan_of = Planner()
        self._scratch = torch.empty(0)

    @override
    def attention_layer(self, weights: AttentionWeights, layer: int) -> Attention:
        projection, output = arguments_of(weights.projection, self.linear), arguments_of(weights.output, self.linear, 1)
        if projection is None or output is None:
            return super().attention_layer(weights, layer)
        return FusedAttention(
            self, weights, layer, projection, output, self._plan_of, self._scratch_of, _SCRATCH_FLOATS
        )

    @override
    def delta_net_layer(self, weights: DeltaNetWeights, layer: int) -> DeltaNet:
        projection, output = arguments_of(weights.projection, self.linear), arguments_of(weights.output, self.linear, 1)
        if projection is None or output is None or weights.conv.shape[1] > recurrent.MAX_TAPS:
            return super().delta_net_layer(weights, layer)
        return FusedDeltaNet(self, weights, layer, projection, output)

    @override
    def mlp_layer(self, weights: MlpWeights) -> Mlp:
        gate_up, down = arguments_of(weights.gate_up, self.linear), arguments_of(weights.down, self.linear, 1)
        if gate_up is None or down is None or weights.activation != "silu":
            return super().mlp_layer(weights)
        return FusedMlp(self, weights, gate_up, down)

    @override
    def experts_layer(self, weights: ExpertsWeights) -> Experts:
        arguments = experts_arguments_of(weights, self.linear)
        if arguments is None:
            return super().experts_layer(weights)
        return FusedExperts(self, weights, arguments, self._scratch_of, _SCRATCH_FLOATS)

    @override
    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> torch.Tensor:
        n, d = x.shape
        norms.rms_norm(x.data_ptr(), x.stride(0) * 4, weight.data_ptr(), n, d, eps, out.data_ptr())
        return out

    @override
    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
    ) -> torch.Tensor:
        n, d = x.shape
        norms.add_rms_norm(x.data_ptr(), residual.data_ptr(), weight.data_ptr(), n, d, eps, out.data_ptr())
        return out

    @override
    def silu_mul(self, gate_up: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        n, d = out.shape
        norms.silu_mul(gate_up.data_ptr(), gate_up.stride(0) * 4, n, d, out.data_ptr())
        return out

    @override
    def gelu_mul(self, gate_up: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return torch.mul(torch.nn.functional.gelu(gate, approximate="tanh"), up, out=out)

    @override
    def gated_rms_norm(
        self, x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
    ) -> torch.Tensor:
        n, heads, d = x.shape
        norms.gated_rms_norm(
            x.data_ptr(), _strides(x), gate.data_ptr(), _strides(gate), weight.data_ptr(), (n, heads, d), eps,
            out.data_ptr(),
        )  # fmt: skip
        return out

    @override
    def route(
        self, x: torch.Tensor, router: torch.Tensor, n_experts: int, n_used: int, normalised: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        n, n_logits = x.shape[0], router.shape[0]
        logits, weights = torch.empty(n, n_logits), torch.empty(n, n_used + n_logits - n_experts)
        experts = torch.empty((n, n_used), dtype=torch.int64)
        if n <= MAX_TOKENS:  # as the layer in one call does
            rows = (x.data_ptr(), x.stride(0) * 4, n, logits.data_ptr(), n_logits * 4)
            skinny_f32.multiply(F32, matrix_of(router, None), rows)
        else:
            torch.mm(x, router.t(), out=logits)
        routing.route(logits.numpy(), n_experts, normalised, weights.numpy(), experts.numpy())
        return weights, experts

    @override
    def sigmoid_mul(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        n, heads, d = x.shape
        norms.sigmoid_mul(x.data_ptr(), gate.data_ptr(), gate.stride(0) * 4, n, heads * d)
        return x

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
        plan = self._plan_of(ubatch)
        q_norm, k_norm, eps = (0, 0, 0.0) if norms is None else (norms[0].data_ptr(), norms[1].data_ptr(), norms[2])
        rope.rope_store(
            CELLS[cache.k_format.name],
            CELLS[cache.v_format.name],
            (q.data_ptr(), k.data_ptr(), v.data_ptr(), cos.data_ptr(), sin.data_ptr()),
            (*_strides(q), *_strides(k), *_strides(v)),
            (q_norm, k_norm),
            eps,
            (q.shape[1], k.shape[1], q.shape[2], v.shape[2], cos.shape[1]),
            cache.addresses(layer, plan.seq_ids),
            plan.span_of,
            ubatch.positions,
        )

    @override
    def attention(
        self, q: torch.Tensor, cache: KVCache, layer: int, ubatch: UBatch, scale: float, out: torch.Tensor
    ) -> torch.Tensor:
        plan = self._plan_of(ubatch)
        window = cache.layers[layer].window
        for run in plan.short_runs:
            self._attend_rows(q, cache, layer, run, window, scale, out)
        for span in plan.long_spans:
            rows = slice(span.start, span.stop)
            cells = cache.cells(layer, span.seq_id)
            widths = (cells.v.n_heads, q.shape[2], out.shape[2])
            scratch = self._scratch_of(prefill_attention.scratch_floats(self._products, *widths))
            prefill_attention.attend_span(self._products, q[rows], cells, span, window, scale, scratch, out[rows])
        return out

    def _attend_rows(
        self,
        q: torch.Tensor,
        cache: KVCache,
        layer: int,
        run: Rows,
        window: int | None,
        scale: float,
        out: torch.Tensor,
    ) -> None:
        heads = (q.shape[1], cache.layers[layer].n_kv_heads, q.shape[2], out.shape[2])
        addresses = cache.addresses(layer, run.seq_ids)
        row_floats = decode_attention.scratch_floats(*heads, CELLS[cache.k_format.name], CELLS[cache.v_format.name])
        at_once = max(_SCRATCH_FLOATS // row_floats, 1)
        scratch = self._scratch_of(min(at_once, len(run.ends)) * row_floats)
        for first in range(0, len(run.ends), at_once):
            lines = slice(first, first + at_once)
            row = run.rows.start + first
            decode_attention.attend(
                CELLS[cache.k_format.name],
                CELLS[cache.v_format.name],
                addresses[lines],
                run.ends[lines],
                window or 0,
                q.data_ptr() + row * q.stride(0) * 4,
                _strides(q),
                heads,
                scale,
                scratch.data_ptr(),
                out.data_ptr() + row * out.stride(0) * 4,
            )

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
        channels, width = weight.shape
        if width > recurrent.MAX_TAPS:
            raise InvalidRequest(f"the cpu kernels convolve up to {recurrent.MAX_TAPS} taps, not {width}")
        spans = state_table(memory, layer, ubatch, 0)
        recurrent.causal_conv(spans, x.data_ptr(), x.stride(0) * 4, weight.data_ptr(), channels, width, out.data_ptr())
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
        n, n_heads = a.shape
        recurrent.delta_gates(
            a.data_ptr(), b.data_ptr(), a.stride(0) * 4, rate.data_ptr(), bias.data_ptr(), n, n_heads,
            decay.data_ptr(), beta.data_ptr(),
        )  # fmt: skip

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
        tensors = (q, k, v, decay, beta, out)
        recurrent.gated_delta_rule(
            state_table(memory, layer, ubatch, 1),
            tuple(tensor.data_ptr() for tensor in tensors),
            (*_strides(q), *_strides(k), *_strides(v), decay.stride(0) * 4, beta.stride(0) * 4),
            (k.shape[1], v.shape[1], k.shape[2], v.shape[2]),
        )
        return out

    @override
    def scratch_bytes(self, n_ubatch: int, max_capacity: int) -> int:
        return 4 * _SCRATCH_FLOATS + SCRATCH_BYTES

    def _scratch_of(self, n_floats: int) -> torch.Tensor:
        if self._scratch.numel() < n_floats:
            self._scratch = torch.empty(n_floats)
        return self._scratch


def _strides(x: torch.Tensor) -> tuple[int, int]:
    """Bytes between rows and between heads of float32 ``[n, heads, d]``."""
    return x.stride(0) * 4, x.stride(1) * 4
