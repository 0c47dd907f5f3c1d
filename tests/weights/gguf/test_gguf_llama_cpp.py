"""The same GGUF in llama.cpp and here: log-probabilities of every token, and how texts are cut into tokens."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.forward import decode, open_memory, random_ids
from support.fuzzed_texts import fuzzed_texts
from support.llama_cpp import ask_llama_cpp
from support.tiny_models import tiny_model
from support.tiny_tokenizers import TEXTS, begin_with, replace_tokenizer, sentencepiece_tokenizer, uncut_tokenizer

from elastikv.kernels import select_kernels
from elastikv.models import load_model
from elastikv.weights.gguf import GGUFFile
from elastikv.weights.gguf.tokenizer import NORMALISED, SPLITS
from tools.gguf_export import export_gguf
from tools.gguf_files import K_QUANTS, random_blocks, rewrite

pytest.importorskip("xllamacpp", reason="compares with llama.cpp, from the xllamacpp package: not installed")

# llama.cpp has one width for the k and v heads of a delta net.
_DELTA_NET = {"linear_key_head_dim": 32, "linear_value_head_dim": 32}
_WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
_ROPE = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
_LLAMA3 = {**_ROPE, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_PROMPTS = [random_ids(1, 300, seed=1), random_ids(45, 300, seed=2), random_ids(130, 300, seed=3)]


def _both(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities ``[n_prompts, n_vocab]`` of the token after each prompt: ours, llama.cpp's."""
    model = load_model(path, kernels=select_kernels("reference")).model
    logits = [decode(model, open_memory(model), {0: prompt})[0][-1] for prompt in _PROMPTS]
    theirs = ask_llama_cpp(path, _PROMPTS, [])["logprobs"]
    return torch.stack(logits).log_softmax(-1), torch.tensor(theirs)


@pytest.mark.parametrize(
    ("arch", "overrides"),
    [
        ("llama", {}),
        ("llama", {"rope_parameters": _LLAMA3}),
        ("llama", {"rope_parameters": {**_ROPE, "rope_type": "linear"}}),
        ("llama", {"rope_parameters": {**_ROPE, "rope_type": "yarn"}}),
        ("llama", {"rope_parameters": {**_ROPE, "rope_type": "yarn", "attention_factor": 1.4}}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("qwen3", {"tie_word_embeddings": False}),
        ("qwen3_5", _DELTA_NET),
        ("qwen3_5", {**_DELTA_NET, "num_hidden_layers": 6, "linear_num_value_heads": 6}),
        ("qwen3_5", {**_DELTA_NET, "linear_num_value_heads": 2, "tie_word_embeddings": False}),
        ("qwen3_moe", {}),
        ("qwen3_moe", {"num_experts": 5, "num_experts_per_tok": 5, "tie_word_embeddings": True}),
        ("qwen3_5_moe", _DELTA_NET),
        ("qwen3_5_moe", {**_DELTA_NET, "shared_expert_intermediate_size": 32, "num_experts_per_tok": 1}),
    ],
)
def test_f32_logits_are_llama_cpps(arch: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    path = export_gguf(tiny_model(arch, tmp_path / "model", **overrides), tmp_path / "model.gguf")
    ours, theirs = _both(path)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("file_type", ["f16", "bf16", "q8_0", "q4_0"])
@pytest.mark.parametrize(
    ("arch", "overrides"),
    [
        ("llama", {}),
        ("qwen3_5", _DELTA_NET),
        ("qwen3_moe", {}),
        ("qwen3_5_moe", {**_DELTA_NET, "num_experts_per_tok": 8}),
    ],
)
def test_packed_logits_are_llama_cpps_but_for_its_activations(
    arch: str, overrides: dict[str, Any], file_type: str, tmp_path: Path
) -> None:
    """llama.cpp rounds activations to the weights' 16 bits, or to 8 for packed weights; here they stay f32.

    Of experts that are nearly as good it may then choose others: in one of these models all are used.
    """
    path = export_gguf(tiny_model(arch, tmp_path / "model", **overrides), tmp_path / "model.gguf", file_type)
    ours, theirs = _both(path)
    error = (ours - theirs).square().mean().sqrt() / ours.std()
    assert error < (0.02 if file_type in ("f16", "bf16") else 0.15)


@pytest.mark.parametrize("kind", K_QUANTS)
def test_experts_of_k_quants_mean_what_llama_cpp_reads_in_them(kind: str, tmp_path: Path) -> None:
    def replace(name: str, data: np.ndarray) -> tuple[np.ndarray, str] | None:
        if not name.endswith("_exps.weight"):
            return None
        n_experts, n_out, n_in = data.shape
        blocks = random_blocks(kind, n_experts * n_out, n_in, seed=len(name))
        return blocks.reshape(n_experts, n_out, -1), kind

    wide = {"hidden_size": 256, "moe_intermediate_size": 256, "num_hidden_layers": 1}
    plain = export_gguf(tiny_model("qwen3_moe", tmp_path / "model", **wide), tmp_path / "plain.gguf")
    ours, theirs = _both(rewrite(plain, tmp_path / "packed.gguf", tensor=replace))
    error = (ours - theirs).square().mean().sqrt() / ours.std()
    assert error < 0.03


@pytest.mark.parametrize("kind", K_QUANTS)
def test_k_quants_mean_what_llama_cpp_reads_in_them(kind: str, tmp_path: Path) -> None:
    def replace(name: str, data: np.ndarray) -> tuple[np.ndarray, str] | None:
        if not name.endswith(("attn_q.weight", "ffn_up.weight", "ffn_down.weight")):
            return None
        return random_blocks(kind, *data.shape, seed=len(name)), kind

    plain = export_gguf(tiny_model("llama", tmp_path / "model", **_WIDE), tmp_path / "plain.gguf")
    ours, theirs = _both(rewrite(plain, tmp_path / "packed.gguf", tensor=replace))
    error = (ours - theirs).square().mean().sqrt() / ours.std()
    assert error < 0.03


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF whose tokens show every cut."""
    tmp_path = tmp_path_factory.mktemp("uncut")
    folder = tiny_model("llama", tmp_path / "model", vocab_size=3072, num_hidden_layers=1)
    replace_tokenizer(folder, uncut_tokenizer(3000), bos_token="<s>", eos_token="</s>")
    return export_gguf(folder, tmp_path / "model.gguf")


@pytest.mark.parametrize("split", [*SPLITS, None])
def test_texts_are_cut_as_llama_cpp_cuts_them(split: str | None, uncut: Path, tmp_path: Path) -> None:
    """Every kind of pre-tokenizer that is accepted, and a file that names none.

    Qwen's tokenizers compose characters first, which llama.cpp leaves out.
    """
    key = "tokenizer.ggml.pre"
    changes = {"metadata": {key: split}} if split else {"without": [key]}
    path = rewrite(uncut, tmp_path / "model.gguf", **changes)
    texts = [unicodedata.normalize("NFC", text) if split in NORMALISED else text for text in fuzzed_texts(400)]
    _assert_same_tokens(path, texts)


def test_a_cut_in_another_place_would_show(uncut: Path) -> None:
    file, ways = GGUFFile(uncut), set()
    for split in SPLITS:
        file.header.metadata["tokenizer.ggml.pre"] = split
        tokenizer = file.tokenizer()
        tokenizer.backend.normalizer = None
        ways.add(str([tokenizer.encode(text, add_special=False) for text in fuzzed_texts(400)]))
    assert len(ways) == len(set(SPLITS.values()))


def _assert_same_tokens(path: Path, texts: list[str]) -> None:
    ours, theirs = GGUFFile(path).tokenizer(), ask_llama_cpp(path, [], texts)["tokens"]
    differing = [text for text, tokens in zip(texts, theirs, strict=True) if ours.encode(text) != tokens]
    assert not differing


@pytest.mark.parametrize("starts_with_space", [True, False])
def test_sentencepiece_tokens_are_llama_cpps(starts_with_space: bool, tmp_path: Path) -> None:
    tokenizer = begin_with(sentencepiece_tokenizer(starts_with_space=starts_with_space), "<s>")
    folder = tiny_model("llama", tmp_path / "model")
    replace_tokenizer(folder, tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    _assert_same_tokens(export_gguf(folder, tmp_path / "model.gguf"), TEXTS + fuzzed_texts(400))
