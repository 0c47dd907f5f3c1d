"""Text to tokens and back, whole and in a stream, and the chat template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.tiny_models import tiny_model
from transformers import AutoTokenizer

from elastikv.errors import CorruptFile, InvalidRequest, ModelError
from elastikv.weights.hf.tokenizer import read_hf_tokenizer
from elastikv.weights.tokenizer import Tokenizer

TEXTS = ("Once upon a time", "", "  two  spaces\n\n\ttab", "Größe 東京 🙂👩‍👩‍👧 Привет", "def f():\n    return 1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return read_hf_tokenizer(folder, (2,))


@pytest.mark.parametrize("text", TEXTS)
def test_same_tokens_as_transformers(text: str, folder: Path, tokenizer: Tokenizer) -> None:
    peer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.encode(text) == peer(text)["input_ids"]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_shows_the_same_text_and_never_half_a_character(text: str, tokenizer: Tokenizer) -> None:
    decoder = tokenizer.stream_decoder()
    pieces = [decoder.push(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) + decoder.flush() == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)


def test_a_stream_cut_inside_a_character_shows_the_rest_when_flushed(tokenizer: Tokenizer) -> None:
    decoder = tokenizer.stream_decoder()
    ids = tokenizer.encode("a👩")[:-1]
    assert "".join(decoder.push(token) for token in ids) == "a"
    assert decoder.flush() == "\N{REPLACEMENT CHARACTER}"
    assert decoder.flush() == ""


def test_bytes_that_are_no_text_do_not_hold_up_a_stream(tokenizer: Tokenizer) -> None:
    lone_continuation = tokenizer.encode("👩")[-1]
    decoder = tokenizer.stream_decoder()
    shown = "".join(decoder.push(lone_continuation) for _ in range(20))
    assert len(shown) >= 16


def test_special_tokens_are_skipped_unless_asked_for(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.token_id("<|im_start|>"), *tokenizer.encode("hi")]
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.decode(ids, skip_special=False) == "<|im_start|>hi"
    assert tokenizer.token_id("no such token") is None


def test_chat_template_as_transformers_applies_it(folder: Path, tokenizer: Tokenizer) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi 🙂"}]
    peer = AutoTokenizer.from_pretrained(folder)
    wanted = peer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert tokenizer.has_chat_template
    assert tokenizer.apply_chat_template(messages) == wanted


def test_template_that_refuses(tokenizer: Tokenizer) -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    strict = Tokenizer(tokenizer.backend, chat_template=template)
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        strict.apply_chat_template([{"role": "user", "content": "x"}])


def test_no_template(tokenizer: Tokenizer) -> None:
    plain = Tokenizer(tokenizer.backend)
    assert not plain.has_chat_template
    with pytest.raises(InvalidRequest, match="no chat template"):
        plain.apply_chat_template([{"role": "user", "content": "x"}])


def test_template_and_tokens_from_the_tokenizer_config(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    config = {
        "bos_token": {"content": "<|endoftext|>"},
        "eos_token": "<|im_end|>",
        "chat_template": [{"name": "other", "template": "-"}, {"name": "default", "template": "{{ bos_token }}ok"}],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = read_hf_tokenizer(tmp_path, ())
    assert tokenizer.eos_token_ids == (tokenizer.token_id("<|im_end|>"),)
    assert tokenizer.render_chat([]) == "<|endoftext|>ok"


@pytest.mark.parametrize("arch", ["llama", "qwen3", "qwen3_5"])
def test_a_folder_without_a_vocabulary_has_no_tokenizer(arch: str, tmp_path: Path) -> None:
    """transformers makes an empty one for some architectures, which would turn every text into nothing."""
    path = tiny_model(arch, tmp_path)
    (path / "tokenizer.json").unlink()
    tokenizer = read_hf_tokenizer(path, (2,))
    assert tokenizer.backend is None
    assert tokenizer.eos_token_ids == (2,)
    assert tokenizer.piece(3) == "token_id:3"
    with pytest.raises(InvalidRequest, match="without a tokenizer"):
        tokenizer.encode("x")
    with pytest.raises(InvalidRequest, match="without a tokenizer"):
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}])


def test_broken_tokenizers(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_text("")
    with pytest.raises(ModelError, match="cannot read the tokenizer in this folder"):
        read_hf_tokenizer(tmp_path, ())
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CorruptFile, match="not a tokenizer"):
        read_hf_tokenizer(tmp_path, ())


def test_tokens_that_each_end_inside_a_character(tokenizer: Tokenizer) -> None:
    """However many follow each other, no character between them is lost, nor kept back to the end."""
    straddling = tokenizer.token_id("µÑ")  # the last byte of one Cyrillic letter, the first of the next
    assert straddling is not None
    decoder = tokenizer.stream_decoder()
    shown = [decoder.push(straddling) for _ in range(9)]
    assert "".join(shown) == "\N{REPLACEMENT CHARACTER}" + 8 * "ѵ"
    assert "".join([*shown, decoder.flush()]) == tokenizer.decode([straddling] * 9)
