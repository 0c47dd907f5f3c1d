"""What a model asks of the machine: operations, and whole layers made of them.

Activations are float32 everywhere; cells have the cache's cell type; weights know their own.
``composed.py`` makes the layers out of the operations, once for every backend. ``reference.py`` is the oracle (torch);
``cpu/`` is fast (numba). Both serve this one protocol.
Tensors passed in are contiguous unless said otherwise; ``out`` is written whole and returned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from elastikv.batch import UBatch
from elastikv.kernels.rope import Rope
from elastikv.kernels.weights import (
    AttentionWeights,
    DeltaNetWeights,
    ExpertsWeights,
    LinearWeights,
    MlpWeights,
    Weight,
)
from elastikv.memory.kv_cache import KVCache
from elastikv.memory.recurrent import RecurrentMemory

AttentionPrecision = Literal["auto", "f32"]
"""Of the products of attention over prompts: "auto" takes 16-bit integers where these are faster."""


class Buffers(Protocol):
    """Compute buffers that live from one resize to the next (the runtime's workspace)."""

    def view(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """An uninitialised tensor over the buffer ``name``; valid until the same name is viewed again."""
        ...


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """What layers need of the ubatch that is computed.

    cache, states: memory of the attention and of the recurrent layers; only layers of that kind may ask.
    rotations: cos and sin ``[n_tokens, rope.half]`` of the ubatch's positions.
    """

    ubatch: UBatch
    cache: KVCache
    states: RecurrentMemory
    buffers: Buffers
    rotations: Mapping[Rope, tuple[torch.Tensor, torch.Tensor]]

    def views(self, widths: Mapping[str, int], n: int) -> list[torch.Tensor]:
        """Buffers by name, each float32 ``[n, width]``."""
        return [self.buffers.view(name, (n, width)) for name, width in widths.items()]


class Sublayer(Protocol):
    """Half of a block: ``x + after(f(before(x)))``, where f is attention, a delta net, an MLP, experts.

    What f gives is added to x by whoever comes next, in one operation with its norm. buffer_widths: float32 values per
    token of each buffer that it views by name; rope: whose rotations it asks for.
    """

    buffer_widths: Mapping[str, int]
    rope: Rope | None

    def __call__(self, delta: torch.Tensor, residual: torch.Tensor, forward: ForwardPass) -> None:
        """Add delta to the residual, and leave in delta what is to be added next. Both ``[n, hidden_size]``.

        n: the ubatch's tokens; fewer only for an f that takes each row by itself.
        """
        ...


class LinearLayer(Protocol):
    """One or more matrices over the same input, their outputs side by side: ``x @ weight.T + bias``."""

    def __call__(self, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Multiply x ``[n, n_in]`` with the weights; the product goes to out, float32 ``[n, n_out]``."""
        ...


class EmbeddingLayer(Protocol):
    """Rows of a matrix ``[n_vocab, hidden_size]``, looked up by token."""

    def __call__(self, token_ids: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Look up token_ids, int64 ``[n]``; their rows go to out, float32 ``[n, hidden_size]``."""
        ...


class Kernels(Protocol):
    """A backend: operations on tensors of one device, and the layers made of them.

    name: what ``--kernels`` calls it. device: of all tensors that it takes and gives. packed_types: packed types that
    ``linear`` multiplies with; layers dequantise others, a few rows at a time. Not for use by several threads at once.
    """

    name: str
    device: torch.device
    packed_types: frozenset[str]

    # Layers: ``composed.ComposedKernels`` has them all; a backend overrides those that it can do as a whole.

    def linear_layer(self, weights: LinearWeights) -> LinearLayer:
        """Products with one or more matrices over the same input, of any format that ``kernels.quants`` knows."""
        ...

    def embedding_layer(self, weight: Weight, scale: float = 1.0) -> EmbeddingLayer:
        """Rows of a matrix ``[n_vocab, hidden_size]``, looked up by token and multiplied with ``scale``."""
        ...

    def attention_layer(self, weights: AttentionWeights, layer: int) -> Sublayer:
        """Causal attention over a KV cache. layer: its index in ``ForwardPass.cache``."""
        ...

    def delta_net_layer(self, weights: DeltaNetWeights, layer: int) -> Sublayer:
        """A gated delta net with its short convolution. layer: its index in ``ForwardPass.states``."""
        ...

    def mlp_layer(self, weights: MlpWeights) -> Sublayer:
        """A gated MLP: ``down(activation(gate) * up)``."""
        ...

    def experts_layer(self, weights: ExpertsWeights) -> Sublayer:
        """A mixture of experts: each token goes to the ``n_used`` that the router chooses."""
        ...

    # Operations

    def linear(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor:
        """``x @ weight.T + bias``: x ``[n, n_in]``, out ``[n, n_out]`` (strided rows allowed), bias f32 ``[n_out]``."""
        ...

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> torch.Tensor:
        """``x / rms(x) * weight`` over the last dimension of ``[n, d]``; x: also a strided view of rows, or ``out``."""
        ...

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
    ) -> torch.Tensor:
        """``residual += x`` in place, then ``rms_norm(residual)``."""
        ...

    def silu_mul(self, gate_up: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """``silu(gate) * up`` where gate_up is ``[n, 2 * d]``, gate first; out ``[n, d]``."""
        ...

    def gelu_mul(self, gate_up: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """``gelu(gate) * up``, gelu by its tanh approximation. gate_up ``[n, 2 * d]``, gate first; out ``[n, d]``."""
        ...

    def route(
        self, x: torch.Tensor, router: torch.Tensor, n_experts: int, n_used: int, normalised: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The ``n_used`` experts with the largest of ``softmax(x @ router[:n_experts].T)``, in ascending order.

        x ``[n, hidden_size]``, router f32. Gives the largest, f32 ``[n, n_used]``, divided by their sum if normalised,
        and the experts, int64. If the router has one row more, the sigmoid of its product is one column more: the
        weight of the shared expert.
        """
        ...

    def sigmoid_mul(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """``x *= sigmoid(gate)`` in place: x ``[n, heads, d]``, gate a view whose heads are contiguous."""
        ...

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
        """Normalise (q_norm, k_norm, eps) and rotate q and k in place, then write k and v to their cells.

        q ``[n, n_heads, d]``, k ``[n, n_kv_heads, d]``, v ``[n, n_kv_heads, dv]``: views whose last
        dimension is contiguous. cos, sin: ``[n, rotary_dim / 2]``, of the half-split (NeoX) pairing;
        the dimensions behind ``rotary_dim`` stay as they are.
        """
        ...

    def attention(
        self, q: torch.Tensor, cache: KVCache, layer: int, ubatch: UBatch, scale: float, out: torch.Tensor
    ) -> torch.Tensor:
        """Causal softmax attention of every span over its stream's cells, which hold the span's k and v already.

        scale: of the products of q and k. q ``[n, n_heads, d]`` (strided view allowed), out ``[n, n_heads, dv]``.
        """
        ...

    def causal_conv(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        memory: RecurrentMemory,
        layer: int,
        ubatch: UBatch,
        out: torch.Tensor,
    ) -> torch.Tensor:
        """Depthwise causal convolution, then SiLU. x ``[n, channels]``, weight ``[channels, width]``.

        State 0 of the layer, ``[channels, width - 1]``, holds the inputs before the span, oldest first.
        """
        ...

    def delta_gates(
        self,
        a: torch.Tensor,
        b: torch.Tensor,
        rate: torch.Tensor,
        bias: torch.Tensor,
        decay: torch.Tensor,
        beta: torch.Tensor,
    ) -> None:
        """``decay = rate * softplus(a + bias)``, ``beta = sigmoid(b)``.

        a, b ``[n, n_v_heads]``, views with rows equally far apart; rate (<= 0), bias ``[n_v_heads]``.
        """
        ...

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
        """Gated delta net (Yang et al., arXiv:2412.06464) over state 1 of the layer, ``[n_v_heads, dk, dv]``.

        q, k ``[n, n_k_heads, dk]`` (l2-normalised inside, q scaled by dk**-0.5), v ``[n, n_v_heads, dv]``,
        decay (log, <= 0) and beta ``[n, n_v_heads]``, out ``[n, n_v_heads, dv]``; v head h reads k head
        ``h // (n_v_heads // n_k_heads)``.
        """
        ...

    def gated_rms_norm(
        self, x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
    ) -> torch.Tensor:
        """``rms_norm(x) * silu(gate)`` over the last dimension of ``[n, heads, d]``."""
        ...

    def scratch_bytes(self, n_ubatch: int, max_capacity: int) -> int:
        """Bytes of scratch the operations above may hold at once, for the budget."""
        ...
