"""What layers add to a backend's operations: packed weights it does not know, rows of an embedding, norms around."""

from __future__ import annotations

import math

import pytest
import torch
from support.forward import NewBuffers
from torch.nn.functional import rms_norm

from elastikv.kernels import quants
from elastikv.kernels.base import ForwardPass
from elastikv.kernels.cpu import CpuKernels
from elastikv.kernels.reference import ReferenceKernels
from elastikv.kernels.weights import LinearWeights, MlpWeights, Norms, PackedTensor
from tools.gguf_files import K_QUANTS, random_blocks

KERNELS = ReferenceKernels()


def packed(weight: torch.Tensor, kind: str) -> PackedTensor:
    return PackedTensor(kind, (weight.shape[0], weight.shape[1]), quants.pack(weight, kind))


@pytest.mark.parametrize("kind", ["dense", "q8_0", "q4_0"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embedding_rows(kind: str, dtype: torch.dtype) -> None:
    weight = torch.randn(10, 64).to(dtype)
    ids = torch.tensor([3, 9, 3, 0])
    stored = weight if kind == "dense" else packed(weight, kind)
    wanted = weight.float() if isinstance(stored, torch.Tensor) else quants.unpack(stored.data, stored.type)
    out = torch.full((4, 64), math.nan)
    assert torch.equal(KERNELS.embedding_layer(stored)(ids, out), wanted[ids])
    assert torch.equal(out, wanted[ids])


def test_an_embedding_that_is_scaled() -> None:
    weight, ids = torch.randn(10, 8), torch.tensor([3, 9])
    assert torch.equal(KERNELS.embedding_layer(weight, 2.5)(ids, torch.empty(2, 8)), weight[ids] * 2.5)


@pytest.mark.parametrize("kind", K_QUANTS)
def test_a_packed_type_that_the_backend_does_not_know(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quants, "TILE_VALUES", 1000)  # three rows at a time
    weight = PackedTensor(kind, (8, 256), torch.from_numpy(random_blocks(kind, 8, 256)))
    bias, x = torch.randn(8), torch.randn(3, 256)
    assert kind not in KERNELS.packed_types
    out = KERNELS.linear_layer(LinearWeights.of([(weight, bias)]))(x, torch.full((3, 8), math.nan))
    torch.testing.assert_close(out, x @ quants.unpack(weight.data, kind).t() + bias)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("kernels", [ReferenceKernels(), CpuKernels()], ids=lambda kernels: kernels.name)
@pytest.mark.parametrize("n", [1, 3, 40])
def test_norms_and_activations_of_an_mlp(
    n: int, kernels: ReferenceKernels | CpuKernels, activation: str, after: bool
) -> None:
    """Against its definition; the cpu backend has one call for silu and few tokens."""
    hidden, inner = 48, 40
    before_norm, after_norm = torch.rand(hidden), torch.rand(hidden)
    gate_up, down = torch.randn(2 * inner, hidden) / 7, torch.randn(hidden, inner) / 7
    norms = Norms(before_norm, 1e-6, after_norm if after else None)
    weights = MlpWeights(norms, *(LinearWeights.of([(matrix, None)]) for matrix in (gate_up, down)), activation)  # type: ignore[arg-type]
    x, delta = torch.randn(n, hidden), torch.randn(n, hidden)

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, (hidden,), weight, 1e-6)

    gate, up = (norm(x + delta, before_norm) @ gate_up.t()).chunk(2, dim=1)
    activate = (
        torch.nn.functional.silu(gate) if activation == "silu" else torch.nn.functional.gelu(gate, approximate="tanh")
    )
    wanted = (activate * up) @ down.t()
    residual, got = x.clone(), delta.clone()
    kernels.mlp_layer(weights)(got, residual, ForwardPass(None, None, None, NewBuffers(), {}))  # type: ignore[arg-type]
    assert torch.equal(residual, x + delta)
    torch.testing.assert_close(got, norm(wanted, after_norm) if after else wanted, atol=1e-5, rtol=1e-4)
