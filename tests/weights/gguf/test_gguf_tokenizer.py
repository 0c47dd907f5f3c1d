"""The tokenizer in a GGUF cuts and joins text as the one in the folder did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import TokenType
from support.tiny_models import CHAT_TEMPLATE, tiny_model
from support.tiny_tokenizers import TEXTS, begin_with, byte_level_tokenizer, replace_tokenizer, sentencepiece_tokenizer
from tokenizers import pre_tokenizers

from elastikv.errors import CorruptFile, UnsupportedModel
from elastikv.weights.gguf import GGUFFile
from elastikv.weights.gguf.tokenizer import _TEKKEN_OWN, SPLITS
from elastikv.weights.hf.tokenizer import read_hf_tokenizer
from elastikv.weights.tokenizer import Tokenizer
from tools.gguf_export import export_gguf
from tools.gguf_files import rewrite


def _read(folder: Path, tmp_path: Path) -> tuple[Tokenizer, Tokenizer]:
    """The folder's tokenizer and its GGUF's."""
    file = GGUFFile(export_gguf(folder, tmp_path / "model.gguf"))
    return read_hf_tokenizer(folder, ()), file.tokenizer()


def _assert_same(theirs: Tokenizer, ours: Tokenizer) -> None:
    for text in TEXTS:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids, text
        assert ours.encode(text, add_special=False) == theirs.encode(text, add_special=False)
        for skip_special in (True, False):
            assert ours.decode(ids, skip_special) == theirs.decode(ids, skip_special)


def test_byte_level_tokenizers_are_the_folders(tmp_path: Path) -> None:
    folder = replace_tokenizer(
        tiny_model("qwen3", tmp_path / "model"), byte_level_tokenizer("qwen2"), eos_token="<|im_end|>"
    )
    theirs, ours = _read(folder, tmp_path)
    _assert_same(theirs, ours)
    assert theirs.decode(theirs.encode(TEXTS[4])) != theirs.decode(theirs.encode(TEXTS[4]), skip_special=False)
    assert theirs.token_id("<|im_end|>") in ours.eos_token_ids


def test_the_chat_template_comes_along(tmp_path: Path) -> None:
    theirs, ours = _read(tiny_model("qwen2", tmp_path / "model"), tmp_path)
    assert ours.chat_template == CHAT_TEMPLATE
    messages = [{"role": "user", "content": "hi"}]
    assert ours.apply_chat_template(messages) == theirs.apply_chat_template(messages)


@pytest.mark.parametrize("name", SPLITS)
def test_every_known_split_is_named_and_read_back(name: str, tmp_path: Path) -> None:
    folder = replace_tokenizer(tiny_model("llama", tmp_path / "model"), byte_level_tokenizer(name), eos_token="</s>")
    theirs, ours = _read(folder, tmp_path)
    _assert_same(theirs, ours)
    header = GGUFFile(tmp_path / "model.gguf").header
    assert SPLITS[header.metadata["tokenizer.ggml.pre"]] == SPLITS[name]


def test_splits_differ_where_it_shows() -> None:
    """The texts above tell the patterns apart, so reading the wrong one would not pass."""
    cut = {patterns: _cut(name) for name, patterns in SPLITS.items()}
    assert len(set(cut.values())) == len(cut)


def _cut(name: str) -> tuple[str, ...]:
    splitter = byte_level_tokenizer(name).pre_tokenizer
    return tuple(piece for text in TEXTS for piece, _ in splitter.pre_tokenize_str(text))


def test_gpt2s_own_split_is_known_without_a_pattern(tmp_path: Path) -> None:
    bpe = byte_level_tokenizer("gpt-2")
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs, ours = _read(replace_tokenizer(tiny_model("qwen2", tmp_path / "model"), bpe), tmp_path)
    _assert_same(theirs, ours)


def test_the_models_own_way_to_tell_case_has_the_name_of_llama_cpps(tmp_path: Path) -> None:
    """llama.cpp's "tekken" tells upper from lower case in ASCII alone; elsewhere a folder and its GGUF may differ."""
    folder = replace_tokenizer(tiny_model("llama", tmp_path / "model"), byte_level_tokenizer(_TEKKEN_OWN))
    theirs, ours = _read(folder, tmp_path)
    assert GGUFFile(tmp_path / "model.gguf").header.metadata["tokenizer.ggml.pre"] == "tekken"
    assert ours.encode("camelCase, IT'S 12\n") == theirs.encode("camelCase, IT'S 12\n")


def test_a_split_without_a_name_is_written_as_the_architectures(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = replace_tokenizer(tiny_model("qwen3_5", tmp_path / "model"), byte_level_tokenizer(r"\p{Lu}"))
    export_gguf(folder, tmp_path / "model.gguf")
    assert "written as 'qwen35'" in caplog.text


def test_beginning_of_text_is_added_where_the_folder_adds_it(tmp_path: Path) -> None:
    bpe = begin_with(byte_level_tokenizer("llama-bpe"), "<s>")
    folder = replace_tokenizer(tiny_model("llama", tmp_path / "model"), bpe, bos_token="<s>", eos_token="</s>")
    theirs, ours = _read(folder, tmp_path)
    _assert_same(theirs, ours)
    assert ours.encode("x")[0] == 0
    assert ours.encode("x", add_special=False)[0] != 0


@pytest.mark.parametrize("starts_with_space", [True, False])
def test_sentencepiece_tokenizers_are_the_folders(starts_with_space: bool, tmp_path: Path) -> None:
    bpe = begin_with(sentencepiece_tokenizer(starts_with_space=starts_with_space), "<s>")
    folder = tiny_model("llama", tmp_path / "model")
    theirs, ours = _read(replace_tokenizer(folder, bpe, bos_token="<s>", eos_token="</s>"), tmp_path)
    _assert_same(theirs, ours)
    assert theirs.decode(theirs.encode("東京")) == "東京"


@pytest.mark.parametrize(("scores", "pieces"), [((-1, -2), ["ab", "c"]), ((-2, -1), ["a", "bc"])])
def test_the_higher_score_is_merged_first(scores: tuple[int, int], pieces: list[str], tmp_path: Path) -> None:
    file = GGUFFile(export_gguf(tiny_model("llama", tmp_path / "model"), tmp_path / "model.gguf"))
    tokens = ["<unk>", "a", "b", "c", "ab", "bc"]
    metadata = {
        "model": "llama",
        "tokens": [token.encode() for token in tokens],
        "token_type": np.array([TokenType.UNKNOWN] + [TokenType.NORMAL] * 5),
        "scores": np.array([0, -3, -3, -3, *scores], dtype=np.float32),
        "add_space_prefix": False,
        "add_bos_token": False,
        "unknown_token_id": 0,
    }
    file.header.metadata.update({f"tokenizer.ggml.{key}": value for key, value in metadata.items()})
    assert [tokens[token_id] for token_id in file.tokenizer().encode("abc")] == pieces


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
