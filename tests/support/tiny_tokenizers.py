"""Small tokenizers of the kinds that GGUF knows, trained on a handful of texts that tell them apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.fuzzed_texts import fuzzed_texts
from support.tiny_models import N_VOCAB
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from elastikv.weights.gguf.tokenizer import SPLITS

TEXTS = [
    "Once upon a time there was a camelCase cache.",
    "  two spaces, a tab\tand\n\n\nlines  \n",
    "it's 1234567890, IT'S a\u0300 combined; naïveté",
    "東京 Привет 🙂🙂",
    "<|im_start|>user\nhi<|im_end|>\n",
    "",
]


def replace_tokenizer(folder: Path, tokenizer: Tokenizer, **special: Any) -> Path:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def byte_level_tokenizer(name: str) -> Tokenizer:
    """As the models whose split has this name have it: Qwen's compose characters first."""
    patterns = SPLITS.get(name, (name,))
    bpe = Tokenizer(BPE())
    if name in ("qwen2", "qwen35", "deepseek-r1-qwen"):
        bpe.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([*cuts, byte_level])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB - 8,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXTS * 4, trainer)
    return bpe


def uncut_tokenizer(n_vocab: int) -> Tokenizer:
    """Merges bytes across every place where a text may be cut: a cut in another place gives other tokens."""
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=16,
        show_progress=False,
    )
    bpe.train_from_iterator(fuzzed_texts(4000, seed=1), trainer)
    return bpe


def sentencepiece_tokenizer(*, starts_with_space: bool) -> Tokenizer:
    bpe = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    steps = [normalizers.Prepend("▁")] if starts_with_space else []
    bpe.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    to_text = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    bpe.decoder = decoders.Sequence([*to_text, decoders.Strip(" ", 1, 0)] if starts_with_space else to_text)
    byte_tokens = [AddedToken(f"<0x{byte:02X}>") for byte in range(256)]
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=N_VOCAB - 8, special_tokens=[*special, *byte_tokens], show_progress=False, limit_alphabet=40
    )
    bpe.train_from_iterator([TEXTS[0], "def grow(n): return n"] * 4, trainer)
    # Bytes are what text falls back to, not tokens that it may contain.
    parsed = json.loads(bpe.to_str())
    vocabulary = parsed["model"]["vocab"]
    n_fixed = len(special) + len(byte_tokens)
    # Ids against the order of merges, so that only the scores tell it.
    parsed["model"]["vocab"] = {
        token: token_id if token_id < n_fixed else len(vocabulary) - 1 - token_id + n_fixed
        for token, token_id in vocabulary.items()
    }
    parsed["added_tokens"] = [token for token in parsed["added_tokens"] if token["content"] in special]
    return Tokenizer.from_str(json.dumps(parsed))


def begin_with(tokenizer: Tokenizer, token: str) -> Tokenizer:
    """Put a special token before every text."""
    around = [(token, tokenizer.token_to_id(token))]
    tokenizer.post_processor = processors.TemplateProcessing(single=[token, "$A"], special_tokens=around)
    return tokenizer
