"""The shipped model is real: transformers loads it offline, it fits the repository, and it has learned."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from elastikv import demo

MAX_BYTES = 10_000_000
# A model that has learned nothing needs log2(n_vocab) bits per token, 3.5 per byte here; the frequencies of single
# tokens alone bring that to 2.8. Only one that knows how Python goes on from one line to the next gets below.
MAX_BITS_PER_BYTE = 1.7
# Written for this test, in the manner of the standard library, so that no model can have it by heart.
UNSEEN = '''"""Read and write ledgers of shelf labels."""

import os
from collections import defaultdict

__all__ = ["ShelfError", "Ledger"]


class ShelfError(Exception):
    """Raised when a label is not on any shelf."""

    def __init__(self, label, message=None):
        self.label = label
        super().__init__(message or "no such label: %r" % (label,))


class Ledger:
    """A mapping from labels to the paths of their files.

    If *encoding* is not given, the labels are read as UTF-8.
    """

    def __init__(self, filename, encoding="utf-8"):
        self.filename = os.fspath(filename)
        self.encoding = encoding
        self._labels = defaultdict(list)

    def add(self, label, path):
        if not isinstance(label, str):
            raise TypeError("label must be a string, not %s" % type(label).__name__)
        self._labels[label].append(path)

    def __getitem__(self, label):
        try:
            return self._labels[label][0]
        except (KeyError, IndexError):
            raise ShelfError(label) from None

    def close(self):
        """Write the ledger to its file and forget all labels."""
        with open(self.filename, "w", encoding=self.encoding) as f:
            for label, paths in sorted(self._labels.items()):
                f.write("%s: %s\\n" % (label, ", ".join(paths)))
        self._labels.clear()


if __name__ == "__main__":
    main()
'''


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(demo.path(), dtype=torch.float32, local_files_only=True).eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(demo.path(), local_files_only=True)


def shipped_files() -> list[Path]:
    return [path for path in demo.path().rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def test_fits_the_repository() -> None:
    assert sum(path.stat().st_size for path in shipped_files()) <= MAX_BYTES


def test_is_a_hybrid_of_three_to_eight_million_parameters(model: PreTrainedModel) -> None:
    assert set(model.config.layer_types) == {"linear_attention", "full_attention"}
    assert 3e6 <= sum(parameter.numel() for parameter in model.parameters()) <= 8e6
    assert model.config.max_position_embeddings >= 32768


def test_all_weights_are_in_the_file() -> None:
    _, report = AutoModelForCausalLM.from_pretrained(demo.path(), local_files_only=True, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_predicts_python_that_it_has_not_seen(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer(UNSEEN, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    bits_per_byte = loss / math.log(2) * (ids.shape[1] - 1) / len(UNSEEN.encode())
    assert bits_per_byte < MAX_BITS_PER_BYTE


def test_tokenizer_loses_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    text = 'def größe(x):\n\treturn "🙂" + x  # 東京\r\n\n    '
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_token_has_an_embedding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(tokenizer) == model.config.vocab_size == model.get_input_embeddings().weight.shape[0]


def test_chat_template_frames_the_turns(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [{"role": "user", "content": "What does os.path.join do?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nWhat does os.path.join do?<|im_end|>\n<|im_start|>assistant\n"


def test_generation_stops_at_the_end_of_a_turn(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert model.generation_config.eos_token_id == ends
    assert tokenizer.eos_token_id in ends
    assert tokenizer.bos_token_id is None
