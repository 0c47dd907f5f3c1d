"""What a model asks of the machine: few, large operations.

Activations are float32 everywhere; cells have the cache's cell type; weights know their own.
``reference.py`` is the oracle (torch); ``cpu/`` is fast (numba). Both serve this one protocol.
Tensors passed in are contiguous unless said otherwise; ``out`` is written whole and returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from elastikv.batch import UBatch
from elastikv.memory.kv_cache import KVCache
from elastikv.memory.recurrent import RecurrentMemory


@dataclass(frozen=True, slots=True, eq=False)
class PackedTensor:
    """A quantised matrix ``[n_out, n_in]`` in GGUF's block format.

    type: ``"q8_0"``, ``"q4_0"``, ``"q4_k"``, ``"q5_k"``, ``"q6_k"``; data: uint8 ``[n_out, row_bytes]``, contiguous.
    """

    type: str
    shape: tuple[int, int]
    data: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.data.nbytes


Weight = torch.Tensor | PackedTensor
"""A matrix ``[n_out, n_in]``: dense (f32, f16, bf16) or packed."""


@dataclass(frozen=True, slots=True)
class LinearPart:
    """Rows of a fused matrix that have one format, and the columns of the output that they give."""

    weight: Weight
    bias: torch.Tensor | None
    columns: slice


LinearParts = Sequence[LinearPart]


@dataclass(frozen=True, slots=True)
class MlpWeights:
    """What an MLP has beside its matrices: the norms before it and after it, f32 ``[hidden_size]``."""

    norm: torch.Tensor
    next_norm: torch.Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """What attention has beside its matrices. norms: of q and k, f32 ``[head_dim]``, and eps; None: no norms.

    gated: the projection gives, behind q, k and v, a gate of q's shape, whose sigmoid the result is multiplied with.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    norms: tuple[torch.Tensor, torch.Tensor, float] | None
    gated: bool
    scale: float


@dataclass(frozen=True, slots=True)
class DeltaNetWeights:
    """What a gated delta net has beside its matrices; all f32.

    conv ``[2 * n_k_heads * k_dim + n_v_heads * v_dim, taps]``; rate, bias ``[n_v_heads]``, see ``Kernels.delta_gates``;
    norm ``[v_dim]``. The projection gives q, k, v, the gate z, then b and a.
    """

    n_k_heads: int
    n_v_heads: int
    k_dim: int
    v_dim: int
    conv: torch.Tensor
    rate: torch.Tensor
    bias: torch.Tensor
    norm: torch.Tensor
    eps: float


class MlpKernel(Protocol):
    def __call__(
        self,
        delta: torch.Tensor,
        residual: torch.Tensor,
        normed: torch.Tensor,
        wide: torch.Tensor,
        inner: torch.Tensor,
    ) -> bool:
        """Add delta to the residual, norm, multiply, add again, and leave the next norm's result in ``normed``.

        ``[n, hidden_size]``, and the buffers wide ``[n, 2 * inner]`` and inner. False: too many tokens, nothing done.
        """
        ...


class AttentionKernel(Protocol):
    def __call__(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        cache: KVCache,
        layer: int,
        ubatch: UBatch,
        wide: torch.Tensor,
        inner: torch.Tensor,
        out: torch.Tensor,
    ) -> bool:
        """Project x, write k and v to their cells, attend, and project to ``out``; as ``MlpKernel`` otherwise."""
        ...


class DeltaNetKernel(Protocol):
    def __call__(
        self,
        x: torch.Tensor,
        memory: RecurrentMemory,
        layer: int,
        ubatch: UBatch,
        wide: torch.Tensor,
        conv: torch.Tensor,
        gates: torch.Tensor,
        inner: torch.Tensor,
        out: torch.Tensor,
    ) -> bool:
        """Project x, convolve, update the states, gate, and project to ``out``; as ``MlpKernel`` otherwise.

        Buffers: wide for the projection, conv for q, k and v, gates ``[n, 2, n_v_heads]``, inner for the result.
        """
        ...


class Buffers(Protocol):
    """Compute buffers that live from one resize to the next (the engine's workspace)."""

    def view(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """An uninitialised tensor over the buffer ``name``; valid until the same name is viewed again."""
        ...


class Kernels(Protocol):
    name: str
    packed_types: frozenset[str]
    """Packed types that ``linear`` multiplies with; others are unpacked tile by tile above it."""

    def linear(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor:
        """``x @ weight.T + bias``: x ``[n, n_in]``, out ``[n, n_out]`` (strided rows allowed), bias f32 ``[n_out]``."""
        ...

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor) -> torch.Tensor:
        """``x / rms(x) * weight`` over the last dimension of ``[n, d]``; x may be a strided view of rows."""
        ...

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, out: torch.Tensor
    ) -> torch.Tensor:
        """``residual += x`` in place, then ``rms_norm(residual)``."""
        ...

    def silu_mul(self, gate_up: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """``silu(gate) * up`` where gate_up is ``[n, 2 * d]``, gate first; out ``[n, d]``."""
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
        """Causal attention of every span over its own stream's cells, which hold the span's k and v already.

        q ``[n, n_heads, d]`` (strided view allowed), out ``[n, n_heads, dv]``.
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

    def bind_mlp(self, gate_up: LinearParts, down: LinearParts, weights: MlpWeights) -> MlpKernel | None:
        """The whole layer as one operation, for a few tokens; None: not for these formats, or not at all."""
        ...

    def bind_attention(
        self, projection: LinearParts, output: LinearParts, weights: AttentionWeights
    ) -> AttentionKernel | None:
        """The same."""
        ...

    def bind_delta_net(
        self, projection: LinearParts, output: LinearParts, weights: DeltaNetWeights
    ) -> DeltaNetKernel | None:
        """The same."""
        ...

    def scratch_bytes(self, n_ubatch: int, max_capacity: int) -> int:
        """Bytes of scratch the operations above may hold at once, for the budget."""
        ...
