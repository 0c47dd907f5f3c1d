"""Embeddings, beside transformers' hidden states of the same model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.tiny_models import tiny_model, tiny_transformers_model

from elastikv import LLM
from elastikv.errors import InvalidRequest, PromptTooLong

PROMPTS = [[5, 9, 200, 17, 80, 4, 3], [7], list(range(40, 90))]


@pytest.mark.parametrize("arch", ["qwen3", "qwen3_5"])
@pytest.mark.parametrize("n_batch", [2048, 8])
def test_they_are_what_transformers_has_after_the_last_norm(arch: str, n_batch: int, tmp_path: Path) -> None:
    module = tiny_transformers_model(arch)
    with LLM(tiny_model(arch, tmp_path), kv_dtype="f32", n_threads=1, n_batch=n_batch, n_ubatch=8) as llm:
        found = {pooling: llm.embed(PROMPTS, pooling=pooling) for pooling in ("mean", "last", "cls")}
        raw = llm.embed(PROMPTS[0], normalize=False)
        assert not llm.stats().sequences
        llm.memory.check()
    for i, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            states = module(torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1][0]
        if i == 0:
            torch.testing.assert_close(raw[0], states.mean(0), rtol=1e-3, atol=1e-3)
        for pooling, expected in (("mean", states.mean(0)), ("last", states[-1]), ("cls", states[0])):
            unit = torch.nn.functional.normalize(expected, dim=0)
            torch.testing.assert_close(found[pooling][i], unit, rtol=1e-3, atol=1e-3)


def test_what_cannot_be_embedded_is_refused() -> None:
    with LLM(n_ctx=64, n_threads=1, kernels="reference") as llm:
        assert llm.embed("hello").shape == llm.embed(["hello"]).shape == (1, 256)
        for bad, error in (([], InvalidRequest), ([3072], InvalidRequest), ([1] * 65, PromptTooLong)):
            with pytest.raises(error):
                llm.embed([bad])
        with pytest.raises(InvalidRequest, match="pooling must be one of mean, last, cls"):
            llm.embed("hello", pooling="rank")
        assert not llm.stats().sequences
