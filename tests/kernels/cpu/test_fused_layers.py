"""Layers in one compiled call give what the same kernels give one by one, bit for bit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.cpu_cases import few_of
from support.forward import decode, open_memory, random_ids
from support.tiny_models import ARCHITECTURES, N_VOCAB, tiny_model

from elastikv.kernels.composed import Attention, ComposedKernels, DeltaNet, Experts, Mlp
from elastikv.kernels.cpu import CpuKernels, experts, layers
from elastikv.kernels.cpu.simd.features import has_byte_products
from elastikv.models import load_model
from tools.gguf_export import export_gguf
from tools.gguf_files import random_blocks, rewrite


class OneByOne(CpuKernels):
    """Every layer as it is composed."""

    attention_layer = ComposedKernels.attention_layer
    delta_net_layer = ComposedKernels.delta_net_layer
    mlp_layer = ComposedKernels.mlp_layer
    experts_layer = ComposedKernels.experts_layer


def run(folder: Path, kernels: CpuKernels, k_type: str, **options: Any) -> torch.Tensor:
    """Prompts, then steps of one sequence, of three, and of so many tokens that only part of the layers are fused."""
    model = load_model(folder, kernels=kernels, **options).model
    memory = open_memory(model, k_type=k_type, v_type=k_type)
    ids = [random_ids(100, N_VOCAB, seed=seed) for seed in range(3)]
    logits = list(decode(model, memory, {seq_id: ids[seq_id][:70] for seq_id in range(3)}, n_ubatch=256).values())
    for step in range(70, 76):
        logits += decode(model, memory, {0: ids[0][step : step + 1]}).values()
        logits += decode(model, memory, {seq_id: ids[seq_id][step : step + 1] for seq_id in (1, 2)}).values()
    for n_new in (3, 5, 8, 20):
        logits += decode(model, memory, {seq_id: ids[seq_id][60 : 60 + n_new] for seq_id in range(3)}).values()
    return torch.cat(logits)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """How each kind of layer was computed."""
    seen: dict[str, set[str]] = {}

    def watch(owner: Any, name: str, layer: str, how: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            seen.setdefault(layer, set()).add(how)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    for layer, composed in {"attention": Attention, "delta_net": DeltaNet, "mlp": Mlp, "experts": Experts}.items():
        watch(experts if layer == "experts" else layers, layer, layer, "fused")
        watch(composed, "_compute", layer, "composed")
    return seen


def how_computed(kind: str, packed: bool) -> set[str]:
    """Of few tokens and of many. Integer products take any number of rows: an MLP of them is always one call."""
    any_rows = packed and has_byte_products() and kind == "mlp"
    return {"fused"} if any_rows else {"fused", "composed"}


@pytest.mark.parametrize("weights", few_of(["f32", "bf16", "q8_0", "q4_0"], "bf16", "q8_0"))
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_same_bits(arch: str, weights: str, tmp_path: Path, calls: dict[str, set[str]]) -> None:
    folder = tiny_model(arch, tmp_path)
    kinds = {"attention", "experts" if "moe" in arch else "mlp", *(["delta_net"] if "qwen3_5" in arch else [])}
    packed = weights.startswith("q")
    options = {"quantize" if packed else "dtype": weights}
    wanted = run(folder, OneByOne(), "f16", **options)
    assert calls == {kind: {"composed"} for kind in kinds}
    calls.clear()
    assert wanted.isfinite().all()
    assert torch.equal(run(folder, CpuKernels(), "f16", **options), wanted)
    assert calls == {kind: how_computed(kind, packed) for kind in kinds}


@pytest.mark.parametrize("k_type", few_of(["f32", "bf16", "q8_0"], "q8_0"))
def test_every_type_of_cells(k_type: str, tmp_path: Path) -> None:
    folder = tiny_model("qwen3", tmp_path)
    assert torch.equal(run(folder, CpuKernels(), k_type), run(folder, OneByOne(), k_type))


def test_a_window_and_a_large_group_of_heads(tmp_path: Path) -> None:
    folder = tiny_model("mistral", tmp_path, num_attention_heads=6, num_key_value_heads=1, sliding_window=20)
    assert torch.equal(run(folder, CpuKernels(), "f16"), run(folder, OneByOne(), "f16"))


@pytest.mark.slow
def test_matrices_of_two_formats(tmp_path: Path, calls: dict[str, set[str]]) -> None:
    """As llama.cpp's Q4_K_M files have them: V is finer than Q and K, and some layers' ``down`` than the others'."""
    wide = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8, "head_dim": 32}
    finer = re.compile(r"blk.[01].attn_v|blk.1.ffn_down|blk.2.attn_k")  # also between two of the other format
    plain = tmp_path / "plain.gguf"
    export_gguf(tiny_model("llama", tmp_path, **wide), plain, file_type="f32")

    def packed(name: str, data: np.ndarray) -> tuple[np.ndarray, str] | None:
        if data.ndim == 1 or data.shape[1] % 256:
            return None
        kind = "q6_k" if finer.search(name) else "q4_k"
        return random_blocks(kind, *data.shape), kind

    mixed = rewrite(plain, tmp_path / "mixed.gguf", tensor=packed)
    wanted = run(mixed, OneByOne(), "f16")
    assert wanted.isfinite().all()
    calls.clear()
    assert torch.equal(run(mixed, CpuKernels(), "f16"), wanted)
    assert calls == {kind: how_computed(kind, packed=True) for kind in ("attention", "mlp")}
