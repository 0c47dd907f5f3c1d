"""All that a layer is made of, as data: what models read from files, and backends make layers of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from elastikv.kernels.rope import Rope


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
        """Bytes of the packed data."""
        return self.data.nbytes


Weight = torch.Tensor | PackedTensor
"""A matrix ``[n_out, n_in]``: dense (f32, f16, bf16) or packed."""


@dataclass(frozen=True, slots=True, eq=False)
class LinearPart:
    """Rows of a fused matrix that have one format, and the columns of the output that they give."""

    weight: Weight
    bias: torch.Tensor | None
    columns: slice


@dataclass(frozen=True, slots=True, eq=False)
class LinearWeights:
    """One or more matrices over the same input, their outputs side by side."""

    parts: tuple[LinearPart, ...]

    @classmethod
    def of(cls, matrices: Iterable[tuple[Weight, torch.Tensor | None]]) -> LinearWeights:
        """From matrices and their biases (f32 ``[n_out]``)."""
        parts: list[LinearPart] = []
        for weight, bias in matrices:
            start = parts[-1].columns.stop if parts else 0
            parts.append(LinearPart(weight, bias, slice(start, start + weight.shape[0])))
        return cls(tuple(parts))

    @property
    def n_in(self) -> int:
        """Width of the input."""
        return self.parts[0].weight.shape[1]

    @property
    def n_out(self) -> int:
        """Width of the output: that of all parts together."""
        n_out: int = self.parts[-1].columns.stop
        return n_out

    @property
    def nbytes(self) -> int:
        """Bytes of all weights and biases."""
        return sum(part.weight.nbytes + (0 if part.bias is None else part.bias.nbytes) for part in self.parts)


@dataclass(frozen=True, slots=True, eq=False)
class Norms:
    """RMS norms of a sublayer, f32 ``[hidden_size]``: of what it takes, and of what it gives (None: as it is)."""

    before: torch.Tensor
    eps: float
    after: torch.Tensor | None = None


Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True, eq=False)
class MlpWeights:
    """A gated MLP: ``down(activation(gate) * up)``. gate_up gives the gate first, then up."""

    norms: Norms
    gate_up: LinearWeights
    down: LinearWeights
    activation: Activation = "silu"


class ExpertWeights(NamedTuple):
    """A gated MLP of several, ``down(silu(gate) * up)``. gate_up gives the gate first, then up."""

    gate_up: LinearWeights
    down: LinearWeights


@dataclass(frozen=True, slots=True, eq=False)
class ExpertsWeights:
    """A mixture of experts: for each token the sum of the ``n_used`` that a router chooses, times their weights.

    router: f32 ``[n_experts, hidden_size]``, see ``Kernels.route``. shared: an expert for every token; its gate is a
    further row of the router. All experts have the same width, the shared one has its own.
    """

    norms: Norms
    router: torch.Tensor
    experts: tuple[ExpertWeights, ...]
    n_used: int
    normalised: bool
    shared: ExpertWeights | None = None


@dataclass(frozen=True, slots=True, eq=False)
class AttentionWeights:
    """Multi-head attention. projection gives q, k and v, heads side by side.

    qk_norms: of q and k, f32 ``[head_dim]``, and eps; None: no norms. gated: the projection gives, behind v, a gate of
    q's shape, whose sigmoid the result is multiplied with. scale: of q's products with k.
    """

    norms: Norms
    projection: LinearWeights
    output: LinearWeights
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rope: Rope
    scale: float
    qk_norms: tuple[torch.Tensor, torch.Tensor, float] | None = None
    gated: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class DeltaNetWeights:
    """A gated delta net. projection gives q, k, v, the gate z, then b and a; vectors are f32.

    conv ``[2 * n_k_heads * k_dim + n_v_heads * v_dim, taps]``; rate, bias ``[n_v_heads]``, see ``Kernels.delta_gates``;
    norm ``[v_dim]``.
    """

    norms: Norms
    projection: LinearWeights
    output: LinearWeights
    n_k_heads: int
    n_v_heads: int
    k_dim: int
    v_dim: int
    conv: torch.Tensor
    rate: torch.Tensor
    bias: torch.Tensor
    norm: torch.Tensor
    eps: float


MixerWeights = AttentionWeights | DeltaNetWeights
"""Of what lets tokens of a sequence see each other: the first half of a block."""

FeedForwardWeights = MlpWeights | ExpertsWeights
"""Of what takes each token by itself: the second half of a block."""
