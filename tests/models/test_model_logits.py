"""Logits against transformers in float32, on random models of every architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.forward import decode, open_memory, random_ids
from support.tiny_models import ARCHITECTURES, N_VOCAB, tiny_model, tiny_transformers_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from elastikv.kernels import select_kernels
from elastikv.kernels.base import AttentionPrecision
from elastikv.models import LoadedModel, load_model

KERNELS = ("reference", "cpu")
ATOL = dict.fromkeys(ARCHITECTURES, 5e-5)
# On these weights transformers' own float32 logits are 1e-4 from float64's: gated norms blow up small outputs.
ATOL["qwen3_5"] = ATOL["qwen3_5_moe"] = 3e-4


def load(path: Path, kernels: str = "reference", precision: AttentionPrecision = "f32", **options: Any) -> LoadedModel:
    return load_model(path, kernels=select_kernels(kernels, attention_precision=precision), **options)


@torch.no_grad()
def peer_logits(peer: PreTrainedModel, token_ids: list[int]) -> torch.Tensor:
    return peer(torch.tensor([token_ids])).logits[0]


def assert_close(got: torch.Tensor, wanted: torch.Tensor, arch: str) -> None:
    torch.testing.assert_close(got, wanted, atol=ATOL[arch], rtol=0)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_prompt_longer_than_ubatches_and_resizes(arch: str, kernels: str, tmp_path: Path) -> None:
    peer = tiny_transformers_model(arch)
    model = load(tiny_model(arch, tmp_path), kernels).model
    ids = random_ids(300, N_VOCAB)
    memory = open_memory(model, initial=16, growth="step:32")
    wanted = peer_logits(peer, ids)
    assert_close(decode(model, memory, {0: ids[:130]}, n_ubatch=48)[0], wanted[:130], arch)
    assert_close(decode(model, memory, {0: ids[130:]}, n_ubatch=64)[0], wanted[130:], arch)
    memory.check()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_attention_over_prompts_as_it_is_by_default(arch: str, tmp_path: Path) -> None:
    """In 16-bit integers, where the processor gains by it."""
    peer = tiny_transformers_model(arch)
    model = load(tiny_model(arch, tmp_path), "cpu", "auto").model
    ids = random_ids(300, N_VOCAB)
    wanted = peer_logits(peer, ids)
    got = decode(model, open_memory(model), {0: ids}, n_ubatch=128)[0]
    assert (got - wanted).square().mean().sqrt() < 2e-3 * wanted.square().mean().sqrt()


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_sequences_of_unequal_length_prefill_beside_decode(arch: str, kernels: str, tmp_path: Path) -> None:
    peer = tiny_transformers_model(arch)
    model = load(tiny_model(arch, tmp_path), kernels).model
    texts = {seq_id: random_ids(160, N_VOCAB, seed=seq_id) for seq_id in range(4)}
    wanted = {seq_id: peer_logits(peer, ids) for seq_id, ids in texts.items()}
    memory = open_memory(model, initial=8, growth="exact")
    done = dict.fromkeys(texts, 0)
    # sequence 0 decodes token by token from the second call on, while others still prefill, and 3 comes late
    for takes in ({0: 90, 1: 3, 2: 57}, {0: 1, 1: 100, 2: 1}, {0: 1, 1: 1, 2: 40, 3: 71}, {3: 1, 0: 1, 2: 1, 1: 1}):
        got = decode(model, memory, {s: texts[s][done[s] : done[s] + n] for s, n in takes.items()}, n_ubatch=50)
        for seq_id, n_tokens in takes.items():
            assert_close(got[seq_id], wanted[seq_id][done[seq_id] : done[seq_id] + n_tokens], arch)
            done[seq_id] += n_tokens
    memory.check()


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama with all biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama tied, one kv head": ("llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "llama, head_dim by division": ("llama", {"head_dim": None, "num_key_value_heads": 4}),
    "mistral without window": ("mistral", {"sliding_window": None}),
    "mistral, window of one ubatch and less": ("mistral", {"sliding_window": 5}),
    "qwen2, window in the upper layers": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    ),
    "qwen3 with biases, untied": ("qwen3", {"attention_bias": True, "tie_word_embeddings": False}),
    "qwen3_5, other head counts": (
        "qwen3_5",
        {"linear_num_key_heads": 3, "linear_num_value_heads": 3, "linear_conv_kernel_dim": 2, "head_dim": 24},
    ),
    "qwen3_5, every second layer attends": (
        "qwen3_5",
        {"layer_types": ["linear_attention", "full_attention"] * 2, "tie_word_embeddings": False},
    ),
    "qwen3_moe, weights as the softmax has them": ("qwen3_moe", {"norm_topk_prob": False}),
    "qwen3_moe, one expert, tied, with biases": (
        "qwen3_moe",
        {"num_experts_per_tok": 1, "norm_topk_prob": False, "tie_word_embeddings": True, "attention_bias": True},
    ),
    "qwen3_moe, all experts": ("qwen3_moe", {"num_experts_per_tok": 8}),
    "qwen3_moe with an MLP in one layer": ("qwen3_moe", {"mlp_only_layers": [1]}),
    "qwen3_moe, experts in every second layer": ("qwen3_moe", {"decoder_sparse_step": 2, "num_hidden_layers": 4}),
    "qwen3_moe with a window": ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 24}),
    "qwen3_moe, a window that is not used": ("qwen3_moe", {"use_sliding_window": False, "sliding_window": 4}),
    "qwen3_5_moe, other counts and widths": (
        "qwen3_5_moe",
        {
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 20,
            "tie_word_embeddings": True,
        },
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_the_architectures(variant: str, tmp_path: Path) -> None:
    arch, overrides = VARIANTS[variant]
    peer = tiny_transformers_model(arch, **overrides)
    model = load(tiny_model(arch, tmp_path, **overrides)).model
    ids = random_ids(70, N_VOCAB)
    memory = open_memory(model, initial=8, growth="step:8")
    wanted = peer_logits(peer, ids)
    assert_close(decode(model, memory, {0: ids[:-1]}, n_ubatch=32)[0], wanted[:-1], arch)
    assert_close(decode(model, memory, {0: ids[-1:]})[0], wanted[-1:], arch)


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if not arch.startswith("qwen3_5")])
def test_partial_rotation_is_ignored_where_transformers_ignores_it(arch: str, tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    peer = tiny_transformers_model(arch, rope_parameters=rope)
    model = load(tiny_model(arch, tmp_path, rope_parameters=rope)).model
    ids = random_ids(40, N_VOCAB)
    assert_close(decode(model, open_memory(model), {0: ids})[0], peer_logits(peer, ids), arch)


def test_a_config_that_leaves_out_its_class_defaults(tmp_path: Path) -> None:
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "sliding_window": 4096}
    peer = tiny_transformers_model("mistral", **heads)
    defaults = type(peer.config)().to_dict()
    written = {key: value for key, value in peer.config.to_dict().items() if value != defaults.get(key)}
    assert not {"num_key_value_heads", "sliding_window", "hidden_act", "tie_word_embeddings"} & written.keys()
    path = tiny_model("mistral", tmp_path, **heads)
    (path / "config.json").write_text(json.dumps({**written, "model_type": "mistral"}))
    model = load(path).model
    ids = random_ids(40, N_VOCAB)
    assert_close(decode(model, open_memory(model), {0: ids})[0], peer_logits(peer, ids), "mistral")


@pytest.mark.parametrize("arch", ["qwen3_5", "qwen3_5_moe"])
def test_text_model_of_a_vision_language_checkpoint(arch: str, tmp_path: Path) -> None:
    path = tiny_model(f"{arch}_vl", tmp_path)
    peer = AutoModelForCausalLM.from_pretrained(path)  # takes the text part, too
    ids = random_ids(80, N_VOCAB)
    loaded = load(path)
    assert loaded.model.info.n_layers == 4
    assert_close(decode(loaded.model, open_memory(loaded.model), {0: ids})[0], peer_logits(peer, ids), arch)


def test_only_the_rows_asked_for_give_logits(tmp_path: Path) -> None:
    from support.forward import PoisonedBuffers

    from elastikv.batch import Batch, SeqTokens

    model = load(tiny_model("llama", tmp_path)).model
    ids = random_ids(20, N_VOCAB)
    every = decode(model, open_memory(model), {0: ids})[0]
    memory = open_memory(model)
    batch = Batch([SeqTokens(0, ids, n_logits=2), SeqTokens(1, ids, n_logits=0)])
    (ubatch,) = memory.init_batch(batch, 64)
    memory.apply(ubatch)
    logits = model.forward(ubatch, memory, PoisonedBuffers(model, 64))
    assert_close(logits, every[-2:], "llama")
    logits.add_(1)  # they are the caller's to change: samplers do


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_sixteen_bit_weights_add_their_own_rounding_and_no_other(
    dtype: str, torch_dtype: torch.dtype, tmp_path: Path
) -> None:
    peer = tiny_transformers_model("qwen3_5")
    model = load(tiny_model("qwen3_5", tmp_path), dtype=dtype).model
    ids = random_ids(40, N_VOCAB)
    exact = peer_logits(peer, ids)
    with torch.no_grad():
        for parameter in peer.parameters():
            if parameter.ndim == 2:
                parameter.copy_(parameter.to(torch_dtype))
    got = decode(model, open_memory(model), {0: ids})[0]
    assert_close(got, peer_logits(peer, ids), "qwen3_5")
    assert not torch.allclose(got, exact, atol=1e-2)
