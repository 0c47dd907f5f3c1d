"""A folder without a tokenizer: token ids come and go, and only what needs text is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support import tiny_architectures
from support.tiny_models import tiny_model

from elastikv import LLM, SamplingParams
from elastikv.errors import InvalidRequest

PROMPTS = [[1, 2, 3], [7, 8]]
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=2)


def _own(folder: Path) -> None:
    tiny_model("qwen3", folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / file).unlink()


def _fallback(folder: Path) -> None:
    tiny_architectures.tiny_model("gpt2").save_pretrained(folder)


@pytest.mark.parametrize("save", [_own, _fallback])
def test_ids_are_enough(save: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path)
    with LLM(tmp_path, n_ctx=64, kernels="reference", kv_dtype="f32") as llm:
        assert "no tokenizer in this folder" in caplog.text
        outputs = llm.generate(PROMPTS, GREEDY)
        for prompt, output in zip(PROMPTS, outputs, strict=True):
            assert (output.text, output.finish_reason, len(output.token_ids)) == ("", "length", 8)
            assert output.logprobs
            assert [each.text for each in output.logprobs] == [f"token_id:{token}" for token in output.token_ids]
            logits = llm.forward([*prompt, *output.token_ids])
            assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == output.token_ids
            llm.memory.seq_rm(0)


NEED_TEXT: dict[str, Callable[[LLM], object]] = {
    "a prompt": lambda llm: llm.generate("Once upon a time"),
    "a prompt among ids": lambda llm: llm.generate([[1, 2], "Once"]),
    "a stream": lambda llm: next(llm.stream("Once")),
    "chat": lambda llm: llm.chat([{"role": "user", "content": "hi"}]),
    "a stop string": lambda llm: llm.generate([1, 2, 3], SamplingParams(stop="\n")),
}


@pytest.mark.parametrize("needs_text", NEED_TEXT)
def test_what_needs_text_is_refused_in_one_sentence(needs_text: str, tmp_path: Path) -> None:
    _own(tmp_path)
    sentence = "this model came without a tokenizer: give token ids, and no stop strings"
    with LLM(tmp_path, n_ctx=64, kernels="reference") as llm, pytest.raises(InvalidRequest) as caught:
        NEED_TEXT[needs_text](llm)
    assert str(caught.value) == sentence
