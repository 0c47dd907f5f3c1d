"""From a source's tensors to what a model multiplies with: fused, converted, packed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
import torch
from support.forward import decode, open_memory, random_ids
from support.tiny_models import N_VOCAB, tiny_model

from elastikv.errors import CorruptFile
from elastikv.kernels import quants, select_kernels
from elastikv.kernels.weights import LinearWeights, PackedTensor
from elastikv.models import load_model
from elastikv.weights.loader import WeightLoader
from elastikv.weights.tokenizer import Tokenizer

# relative rms of logits; the packed weights themselves are 0.5 % and 8 % off, and errors of layers add up
QUANTISED_LOGITS = {"q8_0": 0.04, "q4_0": 0.45}


class DictSource:
    """A ``TensorSource`` over tensors in memory; packed ones are given as such."""

    def __init__(self, tensors: dict[str, torch.Tensor | PackedTensor]) -> None:
        self.name = "tiny"
        self._tensors = tensors

    def names(self) -> Iterable[str]:
        return self._tensors

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def nbytes(self, name: str) -> int:
        return self._tensors[name].nbytes

    def get(self, name: str) -> torch.Tensor:
        tensor = self._tensors[name]
        return tensor if isinstance(tensor, torch.Tensor) else quants.unpack(tensor.data, tensor.type)

    def get_packed(self, name: str) -> PackedTensor | None:
        tensor = self._tensors[name]
        return tensor if isinstance(tensor, PackedTensor) else None

    def tokenizer(self, eos_token_ids: Sequence[int]) -> Tokenizer:
        raise NotImplementedError

    def close(self) -> None: ...


def packed(weight: torch.Tensor, kind: str) -> PackedTensor:
    return PackedTensor(kind, (weight.shape[0], weight.shape[1]), quants.pack(weight, kind))


def loader_of(tensors: dict[str, torch.Tensor | PackedTensor], **options: str | None) -> WeightLoader:
    return WeightLoader(DictSource(tensors), "", **options)  # type: ignore[arg-type]


def apply(weights: LinearWeights, x: torch.Tensor) -> torch.Tensor:
    return select_kernels("reference").linear_layer(weights)(x, out=torch.empty(len(x), weights.n_out))


def formats(linear: LinearWeights) -> list[str]:
    return [
        part.weight.type if isinstance(part.weight, PackedTensor) else str(part.weight.dtype) for part in linear.parts
    ]


def test_neighbours_of_one_format_become_one_matrix() -> None:
    torch.manual_seed(0)
    a, b, c = torch.randn(4, 32), torch.randn(6, 32), torch.randn(2, 32)
    biases = {f"{name}.bias": torch.randn(n) for name, n in (("a", 4), ("b", 6), ("c", 2))}
    loader = loader_of({"a.weight": packed(a, "q8_0"), "b.weight": packed(b, "q8_0"), "c.weight": c, **biases})
    linear = loader.linear(["a", "b", "c"], (12, 32), bias=True)
    assert formats(linear) == ["q8_0", "torch.float32"]
    x = torch.randn(3, 32)
    wanted = x @ torch.cat([a, b, c]).t() + torch.cat(list(biases.values()))
    torch.testing.assert_close(apply(linear, x), wanted, atol=0.1, rtol=0)
    torch.testing.assert_close(apply(linear, x)[:, 10:], wanted[:, 10:])
    assert linear.nbytes == 10 * 34 + 2 * 32 * 4 + 12 * 4


@pytest.mark.parametrize("kind", [None, "q8_0"])
def test_order_moves_rows_and_their_biases(kind: str | None) -> None:
    weight, bias, order = torch.randn(6, 32), torch.randn(6), torch.tensor([4, 5, 0, 1, 2, 3])
    stored = weight if kind is None else packed(weight, kind)
    names: dict[str, torch.Tensor | PackedTensor] = {"a.weight": stored, "a.bias": bias}
    x = torch.randn(2, 32)
    plain = apply(loader_of(names).linear(["a"], (6, 32), bias=True), x)
    moved = apply(loader_of(names).linear(["a"], (6, 32), bias=True, order=order), x)
    torch.testing.assert_close(moved, plain[:, order])


def test_order_across_matrices_of_different_formats() -> None:
    a, b = torch.randn(6, 32), torch.randn(4, 32)
    loader = loader_of({"a.weight": packed(a, "q8_0"), "b.weight": b})
    order = torch.tensor([1, 0, 8, 9, 6, 7, 5, 4, 3, 2])
    linear = loader.linear(["a", "b"], (10, 32), order=order)
    assert formats(linear) == ["q8_0", "torch.float32", "q8_0"]
    x = torch.randn(3, 32)
    torch.testing.assert_close(apply(linear, x), (x @ torch.cat([a, b]).t())[:, order], atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("quantize", "dtype", "found"),
    [
        (None, "auto", ["q8_0", "torch.bfloat16"]),
        (None, "f16", ["q8_0", "torch.float16"]),
        ("none", "auto", ["torch.float32", "torch.bfloat16"]),
        ("none", "bf16", ["torch.bfloat16"]),
        ("q8_0", "auto", ["q8_0"]),
        ("q4_0", "auto", ["q4_0"]),
    ],
)
def test_formats_asked_for(quantize: str | None, dtype: str, found: list[str]) -> None:
    weight = torch.randn(4, 32)
    loader = loader_of(
        {"a.weight": packed(weight, "q8_0"), "b.weight": weight.bfloat16()}, quantize=quantize, dtype=dtype
    )
    assert formats(loader.linear(["a", "b"], (8, 32))) == found


def test_exact_rows_and_rows_that_blocks_do_not_divide_stay_dense() -> None:
    loader = loader_of({"a.weight": torch.randn(4, 32), "b.weight": torch.randn(4, 32)}, quantize="q8_0")
    assert formats(loader.linear(["a", "b"], (8, 32), exact=["b"])) == ["q8_0", "torch.float32"]
    loader = loader_of({"a.weight": torch.randn(4, 33)}, quantize="q8_0")
    assert formats(loader.linear(["a"], (4, 33))) == ["torch.float32"]


def test_integers_are_no_weights() -> None:
    with pytest.raises(CorruptFile, match=r"a\.weight holds torch\.int64"):
        loader_of({"a.weight": torch.zeros(2, 32, dtype=torch.int64)}).linear(["a"], (2, 32))


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
@pytest.mark.parametrize("quantize", list(QUANTISED_LOGITS))
def test_quantised_at_load(quantize: str, kernels: str, tmp_path: Path) -> None:
    path = tiny_model("qwen3", tmp_path)
    exact = load_model(path, kernels=select_kernels("reference")).model
    model = load_model(path, kernels=select_kernels(kernels), quantize=quantize).model
    ids = random_ids(40, N_VOCAB)
    wanted = decode(exact, open_memory(exact), {0: ids})[0]
    memory = open_memory(model)
    got = torch.cat([decode(model, memory, {0: part})[0] for part in (ids[:36], ids[36:])])
    error = ((got - wanted).square().mean() / wanted.square().mean()).sqrt().item()
    assert QUANTISED_LOGITS[quantize] / 10 < error < QUANTISED_LOGITS[quantize]
    assert model.info.weight_bytes < 0.32 * exact.info.weight_bytes
