"""Packing and unpacking, tile by tile: the same bits as the gguf package, and how much each format loses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf import quants as gguf_quants

from elastikv.errors import InvalidRequest, UnsupportedModel
from elastikv.kernels import quants
from tools.gguf_files import K_QUANTS, random_blocks


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles, the last one shorter, in matrices of a few kilobytes."""
    monkeypatch.setattr(quants, "TILE_VALUES", 3 * 256)


def _weights(n_out: int = 10, n_in: int = 256) -> torch.Tensor:
    return torch.randn(n_out, n_in, generator=torch.Generator().manual_seed(1)) * 0.02


def _relative_rms(approximate: torch.Tensor, exact: torch.Tensor) -> float:
    return float((approximate - exact).square().mean().sqrt() / exact.square().mean().sqrt())


@pytest.mark.parametrize("kind", quants.TARGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pack_gives_the_bits_of_the_gguf_package(kind: str, dtype: torch.dtype) -> None:
    weight = _weights().to(dtype)
    expected = gguf_quants.quantize(weight.float().numpy(), GGMLQuantizationType[kind.upper()])
    assert np.array_equal(quants.pack(weight, kind).numpy(), expected)


def test_q8_0_blocks_by_hand() -> None:
    weight = torch.zeros(1, 32)
    weight[0, :3] = torch.tensor([127.0, -63.5, 2.4])
    packed = quants.pack(weight, "q8_0")
    assert packed[0, :2].view(torch.float16).item() == 1.0
    assert packed[0, 2:6].view(torch.int8).tolist() == [127, -64, 2, 0]
    assert quants.unpack(packed, "q8_0")[0, :4].tolist() == [127.0, -64.0, 2.0, 0.0]


def test_q4_0_blocks_by_hand() -> None:
    weight = torch.zeros(1, 32)
    weight[0, 0], weight[0, 16] = -8.0, 7.0
    packed = quants.pack(weight, "q4_0")
    assert packed[0, :2].view(torch.float16).item() == 1.0
    assert packed[0, 2].item() == 0 | 15 << 4  # -8 and 7, both offset by 8: first half low, second half high
    assert torch.equal(quants.unpack(packed, "q4_0"), weight)


@pytest.mark.parametrize("kind", K_QUANTS)
def test_unpack_gives_the_values_of_the_gguf_package(kind: str) -> None:
    blocks = random_blocks(kind, 10, 512)
    expected = gguf_quants.dequantize(blocks, GGMLQuantizationType[kind.upper()])
    assert np.array_equal(quants.unpack(torch.from_numpy(blocks), kind).numpy(), expected)


def test_unpack_writes_into_what_it_is_given() -> None:
    weight = _weights()
    packed = quants.pack(weight, "q8_0")
    out = torch.full(weight.shape, torch.nan, dtype=torch.bfloat16)
    assert quants.unpack(packed, "q8_0", out) is out
    assert torch.equal(out, quants.unpack(packed, "q8_0").to(torch.bfloat16))


@pytest.mark.parametrize(("kind", "least", "most"), [("q8_0", 0.003, 0.006), ("q4_0", 0.06, 0.10)])
def test_what_packing_loses_of_gaussian_weights(kind: str, least: float, most: float) -> None:
    weight = _weights(64, 1024)
    assert least < _relative_rms(quants.unpack(quants.pack(weight, kind), kind), weight) < most


@pytest.mark.parametrize("kind", K_QUANTS)
def test_repacking_k_quants_as_q8_0_loses_little(kind: str) -> None:
    blocks = torch.from_numpy(random_blocks(kind, 64, 1024))
    values = quants.unpack(blocks, kind)
    repacked = quants.repack(blocks, kind, "q8_0")
    assert torch.equal(repacked, quants.pack(values, "q8_0"))
    assert _relative_rms(quants.unpack(repacked, "q8_0"), values) < 0.006


def test_repacking_to_the_same_format_is_free() -> None:
    packed = quants.pack(_weights(), "q4_0")
    assert quants.repack(packed, "q4_0", "q4_0") is packed


def test_rows_that_blocks_do_not_divide_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="32 values at a time; a row of 40"):
        quants.pack(torch.zeros(1, 40), "q8_0")


def test_formats_that_cannot_be_written_or_do_not_exist() -> None:
    with pytest.raises(InvalidRequest, match="choose one of q8_0, q4_0"):
        quants.pack(torch.zeros(1, 256), "q4_k")
    with pytest.raises(UnsupportedModel, match="q9_9"):
        quants.block_sizes("q9_9")
    assert quants.can_unpack("q6_k")
    assert not quants.can_unpack("q8_k")
