"""How memory grows, and where it lies, changes no bit of the logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.forward import decode, open_memory, random_ids
from support.tiny_models import N_VOCAB, tiny_model

from elastikv.kernels import select_kernels
from elastikv.models import load_model
from elastikv.models.base import Model

MEMORIES: tuple[dict[str, Any], ...] = (
    {"dynamic": True, "storage": "copy", "initial": 16},
    {"dynamic": True, "storage": "copy", "initial": 1, "growth": "exact"},
    {"dynamic": True, "storage": "mmap", "initial": 16, "growth": "step:24"},
    {"dynamic": True, "storage": "mmap", "initial": 7, "growth": "double:1MiB"},
    {"dynamic": False, "storage": "mmap"},
)


def run(model: Model, **options: Any) -> torch.Tensor:
    memory = open_memory(model, **options)
    one, two = random_ids(150, N_VOCAB, seed=1), random_ids(90, N_VOCAB, seed=2)
    logits = list(decode(model, memory, {0: one[:100], 1: two[:30]}, n_ubatch=40).values())
    for step in range(20):
        logits += decode(
            model, memory, {0: one[100 + step : 101 + step], 1: two[30 + 3 * step : 33 + 3 * step]}
        ).values()
    memory.close()
    return torch.cat(logits)


@pytest.mark.parametrize(("cell_type", "kernels"), [("f32", "reference"), ("f16", "cpu"), ("q8_0", "cpu")])
@pytest.mark.parametrize("arch", ["mistral", "qwen3", "qwen3_5", "qwen3_5_moe"])
def test_static_and_dynamic_copy_and_mmap_whatever_the_growth(
    arch: str, cell_type: str, kernels: str, tmp_path: Path
) -> None:
    model = load_model(tiny_model(arch, tmp_path), kernels=select_kernels(kernels)).model
    wanted = run(model, dynamic=False, storage="copy", k_type=cell_type, v_type=cell_type)
    assert wanted.isfinite().all()
    for options in MEMORIES:
        assert torch.equal(run(model, k_type=cell_type, v_type=cell_type, **options), wanted), options


@pytest.mark.parametrize(("arch", "atol"), [("llama", 5e-5), ("qwen3_5", 3e-4)])
def test_the_size_of_ubatches_changes_rounding_only(arch: str, atol: float, tmp_path: Path) -> None:
    model = load_model(tiny_model(arch, tmp_path), kernels=select_kernels("reference")).model
    ids = random_ids(200, N_VOCAB)
    wanted = decode(model, open_memory(model), {0: ids}, n_ubatch=200)[0]
    for n_ubatch in (1, 7, 64):
        got = decode(model, open_memory(model), {0: ids}, n_ubatch=n_ubatch)[0]
        torch.testing.assert_close(got, wanted, atol=atol, rtol=0)
