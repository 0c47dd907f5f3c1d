"""The tokenizer in a GGUF cuts and joins text as the one in the folder did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.gguf_files import rewrite
from support.tiny_models import CHAT_TEMPLATE, N_VOCAB, tiny_model
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from elastikv.errors import CorruptFile, UnsupportedModel
from elastikv.weights.gguf_export import export_gguf
from elastikv.weights.gguf_file import GGUFFile
from elastikv.weights.gguf_tokenizer import SPLITS
from elastikv.weights.tokenizer import Tokenizer as OurTokenizer
from elastikv.weights.tokenizer import read_hf_tokenizer

_TEXTS = [
    "Once upon a time there was a camelCase cache.",
    "  two spaces, a tab\tand\n\n\nlines  \n",
    "it's 1234567890, IT'S a\u0300 combined; naïveté",
    "東京 Привет 🙂🙂",
    "<|im_start|>user\nhi<|im_end|>\n",
    "",
]


def _read(folder: Path, tmp_path: Path) -> tuple[OurTokenizer, OurTokenizer]:
    """The folder's tokenizer and its GGUF's."""
    file = GGUFFile(export_gguf(folder, tmp_path / "model.gguf"))
    return read_hf_tokenizer(folder, ()), file.tokenizer()


def _replace_tokenizer(folder: Path, tokenizer: Tokenizer, **special: Any) -> Path:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def _assert_same(theirs: OurTokenizer, ours: OurTokenizer) -> None:
    for text in _TEXTS:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids, text
        assert ours.encode(text, add_special=False) == theirs.encode(text, add_special=False)
        for skip_special in (True, False):
            assert ours.decode(ids, skip_special) == theirs.decode(ids, skip_special)


def _byte_level(name: str) -> Tokenizer:
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
    bpe.train_from_iterator(_TEXTS * 4, trainer)
    return bpe


def test_byte_level_tokenizers_are_the_folders(tmp_path: Path) -> None:
    folder = _replace_tokenizer(tiny_model("qwen3", tmp_path / "model"), _byte_level("qwen2"), eos_token="<|im_end|>")
    theirs, ours = _read(folder, tmp_path)
    _assert_same(theirs, ours)
    assert theirs.decode(theirs.encode(_TEXTS[4])) != theirs.decode(theirs.encode(_TEXTS[4]), skip_special=False)
    assert theirs.token_id("<|im_end|>") in ours.eos_token_ids


def test_the_chat_template_comes_along(tmp_path: Path) -> None:
    theirs, ours = _read(tiny_model("qwen2", tmp_path / "model"), tmp_path)
    assert ours.chat_template == CHAT_TEMPLATE
    messages = [{"role": "user", "content": "hi"}]
    assert ours.apply_chat_template(messages) == theirs.apply_chat_template(messages)


@pytest.mark.parametrize("name", SPLITS)
def test_every_known_split_is_named_and_read_back(name: str, tmp_path: Path) -> None:
    folder = _replace_tokenizer(tiny_model("llama", tmp_path / "model"), _byte_level(name), eos_token="</s>")
    theirs, ours = _read(folder, tmp_path)
    _assert_same(theirs, ours)
    header = GGUFFile(tmp_path / "model.gguf").header
    assert SPLITS[header.metadata["tokenizer.ggml.pre"]] == SPLITS[name]


def test_splits_differ_where_it_shows() -> None:
    """The texts above tell the patterns apart, so reading the wrong one would not pass."""
    cut = {patterns: _cut(name) for name, patterns in SPLITS.items()}
    assert len(set(cut.values())) == len(cut)


def _cut(name: str) -> tuple[str, ...]:
    splitter = _byte_level(name).pre_tokenizer
    return tuple(piece for text in _TEXTS for piece, _ in splitter.pre_tokenize_str(text))


def test_gpt2s_own_split_is_known_without_a_pattern(tmp_path: Path) -> None:
    bpe = _byte_level("gpt-2")
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs, ours = _read(_replace_tokenizer(tiny_model("qwen2", tmp_path / "model"), bpe), tmp_path)
    _assert_same(theirs, ours)


def test_a_split_without_a_name_is_written_as_the_architectures(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = _replace_tokenizer(tiny_model("qwen3_5", tmp_path / "model"), _byte_level(r"\p{Lu}"))
    export_gguf(folder, tmp_path / "model.gguf")
    assert "written as 'qwen35'" in caplog.text


def test_beginning_of_text_is_added_where_the_folder_adds_it(tmp_path: Path) -> None:
    bpe = _byte_level("llama-bpe")
    bpe.post_processor = processors.TemplateProcessing(single=["<s>", "$A"], special_tokens=[("<s>", 0)])
    folder = _replace_tokenizer(tiny_model("llama", tmp_path / "model"), bpe, bos_token="<s>", eos_token="</s>")
    theirs, ours = _read(folder, tmp_path)
    _assert_same(theirs, ours)
    assert ours.encode("x")[0] == 0
    assert ours.encode("x", add_special=False)[0] != 0


def _sentencepiece(*, starts_with_space: bool) -> Tokenizer:
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
    bpe.train_from_iterator([_TEXTS[0], "def grow(n): return n"] * 4, trainer)
    # Bytes are what text falls back to, not tokens that it may contain.
    parsed = json.loads(bpe.to_str())
    parsed["added_tokens"] = [token for token in parsed["added_tokens"] if token["content"] in special]
    return Tokenizer.from_str(json.dumps(parsed))


@pytest.mark.parametrize("starts_with_space", [True, False])
def test_sentencepiece_tokenizers_are_the_folders(starts_with_space: bool, tmp_path: Path) -> None:
    bpe = _sentencepiece(starts_with_space=starts_with_space)
    bpe.post_processor = processors.TemplateProcessing(single=["<s>", "$A"], special_tokens=[("<s>", 1)])
    folder = tiny_model("llama", tmp_path / "model")
    theirs, ours = _read(_replace_tokenizer(folder, bpe, bos_token="<s>", eos_token="</s>"), tmp_path)
    _assert_same(theirs, ours)
    assert theirs.decode(theirs.encode("東京")) == "東京"


def test_a_folder_without_tokenizer_gets_single_bytes(tmp_path: Path) -> None:
    folder = tiny_model("qwen3", tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    tokenizer = GGUFFile(export_gguf(folder, tmp_path / "model.gguf")).tokenizer()
    assert tokenizer.decode(tokenizer.encode("Größe 東")) == "Größe 東"
    assert len(tokenizer.encode("Größe")) == len("Größe".encode())


def test_other_tokenizers_are_named(tmp_path: Path) -> None:
    good = export_gguf(tiny_model("qwen3", tmp_path / "model"), tmp_path / "model.gguf")
    bert = rewrite(good, tmp_path / "bert.gguf", metadata={"tokenizer.ggml.model": "bert"})
    with pytest.raises(UnsupportedModel, match="'bert' is not supported; supported: gpt2, llama"):
        GGUFFile(bert).tokenizer()
    chameleon = rewrite(good, tmp_path / "chameleon.gguf", metadata={"tokenizer.ggml.pre": "chameleon"})
    with pytest.raises(UnsupportedModel, match="'chameleon' is not supported; supported: qwen2"):
        GGUFFile(chameleon).tokenizer()
    file = GGUFFile(good)
    del file.header.metadata["tokenizer.ggml.tokens"]
    with pytest.raises(CorruptFile, match="no vocabulary"):
        file.tokenizer()
