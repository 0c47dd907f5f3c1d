"""Random models of a few kilobytes with a real tokenizer, saved as Hugging Face folders.

    path = tiny_model("qwen3_5", tmp_path, num_hidden_layers=2)

The weights are random but not small, so that a mistake anywhere shows in the logits.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3_5Config,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForCausalLM,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_5", "qwen3_moe", "qwen3_5_moe")
N_VOCAB = 384

_CLASSES: dict[str, tuple[type, type]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "qwen3_5": (Qwen3_5TextConfig, Qwen3_5ForCausalLM),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
    "qwen3_5_moe": (Qwen3_5MoeTextConfig, Qwen3_5MoeForCausalLM),
}
_VISION_CLASSES: dict[str, tuple[type, type]] = {
    "qwen3_5": (Qwen3_5Config, Qwen3_5ForConditionalGeneration),
    "qwen3_5_moe": (Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration),
}

_COMMON: dict[str, Any] = {
    "vocab_size": N_VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
_HYBRID: dict[str, Any] = {
    "num_hidden_layers": 4,  # three gated delta nets, then full attention
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
}
_EXPERTS: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
_OWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 48},
    "qwen2": {"head_dim": 16},  # its config has no head_dim: hidden_size / num_attention_heads
    "qwen3": {"tie_word_embeddings": True},
    "qwen3_5": {**_HYBRID, "tie_word_embeddings": True},
    "qwen3_moe": {**_EXPERTS, "norm_topk_prob": True},
    "qwen3_5_moe": {**_HYBRID, **_EXPERTS, "shared_expert_intermediate_size": 64},
}

_CORPUS = (
    "Once upon a time there was a cache that grew with every token it was told.",
    "def grow(n_cells: int) -> int:\n    return max(256, 2 * n_cells)\n",
    "The quick brown fox jumps over the lazy dog; 1234567890 times.",
    "Größe, naïveté, 東京, Привет, 🙂",
)
# The way Qwen2 and Qwen3 split text before merging bytes; GGUF knows it as "qwen2".
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_model(arch: str, folder: Path, *, seed: int = 0, max_shard_size: str = "1GB", **overrides: Any) -> Path:
    """Write a random model of ``arch`` (``"qwen3_5_vl"``: the text model inside a vision-language one) to ``folder``.

    ``overrides`` are fields of its transformers config. Returns ``folder``.
    """
    model = tiny_transformers_model(arch, seed=seed, **overrides)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_transformers_model(arch: str, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """The same model, in memory, float32, ready to be asked for logits."""
    text_arch = arch.removesuffix("_vl")
    config_class, model_class = _CLASSES[text_arch]
    eos = tiny_tokenizer().convert_tokens_to_ids("<|im_end|>")
    config = config_class(**{**_COMMON, **_OWN[text_arch], "eos_token_id": eos, **overrides})
    if arch.endswith("_vl"):
        vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
        config_class, model_class = _VISION_CLASSES[text_arch]
        config = config_class(
            text_config=config.to_dict(), vision_config=vision, tie_word_embeddings=config.tie_word_embeddings
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config).eval().to(torch.float32)
        _randomise(model)
    return model


@torch.no_grad()
def _randomise(model: PreTrainedModel) -> None:
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.normal_(std=1.0 / math.sqrt(parameter.shape[-1]))
        else:  # norms, biases, A_log and dt_bias: around what they start from
            parameter.add_(torch.randn_like(parameter), alpha=0.2)


_tokenizer: PreTrainedTokenizerFast | None = None


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a few merges and the ChatML markers."""
    global _tokenizer
    if _tokenizer is None:
        bpe = Tokenizer(BPE())
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_QWEN2_SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        bpe.decoder = decoders.ByteLevel()
        specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        trainer = trainers.BpeTrainer(
            vocab_size=N_VOCAB - 8,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        bpe.train_from_iterator(_CORPUS * 4, trainer)
        _tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
        )
    return _tokenizer
