"""A model in small: one layer of each kind, and no values."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.tiny_models import tiny_model

from elastikv.kernels import quants, select_kernels
from elastikv.kernels.weights import LinearWeights, MlpWeights, PackedTensor
from elastikv.models import load_model
from elastikv.models.decoder import DecoderWeights
from elastikv.runtimes import rehearsal


def weights(path: Path) -> DecoderWeights:
    return load_model(path, kernels=select_kernels("reference")).model.weights


@pytest.mark.parametrize(("arch", "n_kinds"), [("llama", 1), ("qwen3_5", 2), ("qwen3_moe", 1), ("qwen3_5_moe", 2)])
def test_a_layer_of_each_kind(arch: str, n_kinds: int, tmp_path: Path) -> None:
    assert len(rehearsal.in_small(weights(tiny_model(arch, tmp_path))).blocks) == n_kinds


def test_a_layer_of_another_format_is_of_another_kind(tmp_path: Path) -> None:
    whole = weights(tiny_model("llama", tmp_path))
    first, second, third = whole.blocks
    feed_forward = second.feed_forward
    assert isinstance(feed_forward, MlpWeights)
    (part,) = feed_forward.down.parts
    packed = PackedTensor("q8_0", tuple(part.weight.shape), quants.pack(part.weight, "q8_0"))
    other = second._replace(feed_forward=replace(feed_forward, down=LinearWeights.of([(packed, None)])))
    mixed = replace(whole, blocks=(first, other, third))
    assert rehearsal.in_small(mixed).blocks == (first, other)


def test_what_is_sent_has_shapes_and_no_values(tmp_path: Path) -> None:
    whole = weights(tiny_model("qwen3_5", tmp_path))
    sent = rehearsal.dumps(whole)
    assert len(sent) < 20_000
    received = rehearsal.load(io.BytesIO(sent))
    assert received.info == whole.info
    assert isinstance(received.head, LinearWeights)
    for ours, theirs in zip(_tensors(whole.head), _tensors(received.head), strict=True):
        assert (ours.shape, ours.dtype, ours.stride()) == (theirs.shape, theirs.dtype, theirs.stride())
        assert not theirs.any()


def _tensors(weights: LinearWeights) -> list[torch.Tensor]:
    return [part.weight for part in weights.parts if isinstance(part.weight, torch.Tensor)]


@pytest.mark.parametrize("arch", ["qwen3", "qwen3_5_moe"])
def test_all_paths_can_be_taken(arch: str, tmp_path: Path) -> None:
    zeros = rehearsal.load(io.BytesIO(rehearsal.dumps(weights(tiny_model(arch, tmp_path)))))
    rehearsal.rehearse(zeros, select_kernels("reference"), ("f16", "q8_0"), rehearsal.ALL_PATHS)
