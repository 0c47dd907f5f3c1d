"""Whatever is wrong with an argument is said in one sentence that names it; arrays are as good as lists."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_models import N_VOCAB, tiny_model

from elastikv import LLM, AsyncLLM, InvalidRequest, SamplingParams, SchedulerOptions

GREEDY = SamplingParams(temperature=0, max_tokens=3)
IDS = [5, 6, 7]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(folder, n_ctx=64, kernels="reference") as llm:
        yield llm


# Token ids


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([-1], "token -1 is none"),
        ([N_VOCAB], f"token {N_VOCAB} is none"),
        ([2**70], "is none of the model's"),
        ([1.0], "whole numbers, got 1.0"),
        (np.array([1.5]), "whole numbers"),
        (torch.tensor([1.5]), "whole numbers"),
        (torch.tensor([[1]]), "list of token ids"),
        ([True], "whole numbers, got True"),
        ("text", "list of token ids"),
        (b"bytes", "list of token ids"),
        (None, "list of token ids, got None"),
        (5, "list of token ids, got 5"),
        ({1: 2}, "list of token ids"),
        ([[1]], "whole numbers"),
        ([], "no tokens"),
    ],
)
def test_forward_refuses_what_are_no_token_ids(llm: LLM, ids: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        llm.forward(ids)
    assert llm.memory.seq_ids() == []


@pytest.mark.parametrize("seq_id", [-1, 1 << 20, 1.5, "0", None])
def test_forward_refuses_what_is_no_sequence(llm: LLM, seq_id: Any) -> None:
    with pytest.raises(InvalidRequest, match="seq_id"):
        llm.forward([1], seq_id=seq_id)


@pytest.mark.parametrize(
    "ids",
    [tuple(IDS), np.array(IDS), np.array(IDS, np.int16), torch.tensor(IDS), [*np.array(IDS)], [*torch.tensor(IDS)]],
)
def test_arrays_are_accepted_wherever_lists_are(llm: LLM, ids: Any) -> None:
    expected = llm.generate([IDS], GREEDY)[0].token_ids
    assert [output.token_ids for output in llm.generate(ids, GREEDY)] == [expected]
    assert [output.token_ids for output in llm.generate([ids, ids], GREEDY)] == [expected] * 2
    assert list(llm.stream(ids, GREEDY))[-1].output.token_ids == expected  # type: ignore[union-attr]
    assert torch.equal(llm.forward(ids, seq_id=np.int64(3)), llm.forward(IDS, seq_id=4))  # type: ignore[arg-type]
    llm.clear()


def test_a_matrix_is_a_batch(llm: LLM) -> None:
    for batch in (np.array([IDS, IDS]), torch.tensor([IDS, IDS])):
        assert len(llm.generate(batch, GREEDY)) == 2


def test_no_prompts_give_no_outputs(llm: LLM) -> None:
    for nothing in ([], (), np.array([], int)):
        assert llm.generate(nothing) == []


@pytest.mark.parametrize(
    "prompt", [b"text", None, 5, 2.5, {"a": 1}, [None], [b"x"], ["x", 5], [1.0, 2.0], [[1], [2.5]]]
)
def test_what_is_no_prompt_is_refused_with_a_sentence(llm: LLM, prompt: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"list of token ids|whole numbers"):
        llm.generate(prompt)
    if not isinstance(prompt, list):
        with pytest.raises(InvalidRequest, match="list of token ids"):
            next(llm.stream(prompt))
        with pytest.raises(InvalidRequest, match="list of token ids"):
            llm.submit(prompt)


@pytest.mark.parametrize("params", [5, {"temperature": 1}, "greedy", [5]])
def test_params_must_be_sampling_params(llm: LLM, params: Any) -> None:
    for use in (llm.generate, lambda prompt, params: next(llm.stream(prompt, params)), llm.submit):
        with pytest.raises(InvalidRequest, match="SamplingParams"):
            use("x", params)


@pytest.mark.parametrize("messages", [None, "hello", 5, {"role": "user"}])
def test_messages_must_be_messages(llm: LLM, messages: Any) -> None:
    with pytest.raises(InvalidRequest, match="messages must be a list"):
        llm.chat(messages)


def test_resize_refuses_what_is_no_number(llm: LLM) -> None:
    llm.forward([1])
    for n_cells in ("100", 2.5, None):
        with pytest.raises(InvalidRequest, match="n_cells"):
            llm.memory.resize(n_cells)
    llm.clear()


# Options


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"model": 5}, "model must be the path"),
        ({"n_ctx": "100"}, "n_ctx .* whole number, got '100'"),
        ({"n_ctx": 2.5}, "n_ctx .* whole number"),
        ({"n_ctx": 2**62}, "n_ctx .* at most 2147483647"),
        ({"n_ctx": True}, "n_ctx .* whole number"),
        ({"n_batch": "100"}, "n_batch"),
        ({"n_batch": 2**62}, "n_batch .* at most"),
        ({"n_ubatch": 2.5}, "n_ubatch"),
        ({"n_ubatch": 2**62}, "n_ubatch .* at most"),
        ({"n_threads": "all"}, "n_threads"),
        ({"n_threads": 2**62}, "n_threads .* at most"),
        ({"kv_dynamic": "no"}, "kv_dynamic must be True or False"),
        ({"kv_growth": 256}, "growth policy"),
        ({"kv_initial": 2.5}, "kv_initial"),
        ({"kv_initial": 2**62}, "kv_initial .* at most"),
        ({"kv_budget": 1.5}, "budget must be a whole number, got 1.5; give bytes"),
        ({"kv_budget": True}, "budget"),
        ({"kv_budget": [4]}, "budget"),
        ({"kv_dtype": ("f16",)}, "kv_dtype .* one type, or two"),
        ({"kv_dtype": ("f16", "f16", "f16")}, "kv_dtype"),
        ({"kv_dtype": 16}, "kv_dtype"),
        ({"kv_dtype": ("f16", None)}, "kv_dtype"),
        ({"kv_dtype": torch.float64}, "kv_dtype .* must be one of"),
        ({"kv_storage": 5}, "storage"),
        ({"dtype": 16}, "dtype"),
        ({"dtype": torch.int8}, "dtype must be auto"),
        ({"quantize": 5}, "quantize"),
        ({"quantize": ["q8_0"]}, "quantize"),
        ({"kernels": 5}, "kernels"),
        ({"attention_precision": "int8"}, "attention_precision .* must be auto or f32"),
        ({"scheduler": {"n_parallel": 4}}, "scheduler must be SchedulerOptions"),
        ({"progress": 5}, "progress"),
    ],
    ids=str,
)
def test_wrongly_typed_options_are_refused_by_name(folder: Path, keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        LLM(**{"model": folder, **keywords})


@pytest.mark.parametrize(
    "keywords",
    [
        {"temperature": "hot"},
        {"temperature": 10**400},
        {"top_k": 2.5},
        {"top_p": None},
        {"repeat_last_n": "64"},
        {"seed": 1.5},
        {"max_tokens": "5"},
        {"max_tokens": 2.5},
        {"stop": 5},
        {"stop": [5]},
        {"stop": b"x"},
        {"logprobs": "2"},
        {"logit_bias": [1]},
        {"logit_bias": {"a": 1.0}},
        {"logit_bias": {1: "a"}},
        {"ignore_eos": "yes"},
    ],
    ids=lambda keywords: str(keywords)[:40],
)
def test_wrongly_typed_sampling_is_refused_by_name(keywords: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(keywords))):
        SamplingParams(**keywords)


@pytest.mark.parametrize(
    "keywords",
    [{"n_parallel": "4"}, {"max_queue": 2.5}, {"idle_drop_seconds": "1"}, {"prefix_reuse": 5}, {"park_dir": 5}],
    ids=str,
)
def test_wrongly_typed_scheduling_is_refused_by_name(keywords: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(keywords))):
        SchedulerOptions(**keywords)


def test_numbers_of_numpy_are_numbers(llm: LLM) -> None:
    params = SamplingParams(top_k=np.int64(3), seed=np.int32(5), max_tokens=np.int64(3), logit_bias={np.int64(7): 1.0})
    assert len(llm.generate("x", params)[0].token_ids) == 3


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_types_are_known_by_torchs_names_too(folder: Path, name: str) -> None:
    short = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[name]
    logits = []
    for given in (short, name, getattr(torch, name)):
        with LLM(folder, n_ctx=64, kernels="reference", dtype=given, kv_dtype=(given, "q8_0")) as llm:
            logits.append(llm.forward(IDS))
            options = llm.memory.options  # type: ignore[attr-defined]
            assert (options.k_type, options.v_type) == (short, "q8_0")
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


# AsyncLLM


def test_an_async_llm_refuses_the_same(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="llm must be an LLM"):
        AsyncLLM("x")  # type: ignore[arg-type]

    async def run() -> None:
        engine = AsyncLLM(llm)
        await engine.start()
        for prompt in (None, b"x", [-1], [1.5], [N_VOCAB]):
            with pytest.raises(InvalidRequest):
                await engine.generate(prompt)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest):
            await engine.generate("x", 5)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest):
            await engine.resize("100")  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest):
            await engine.set_budget(1.5)  # type: ignore[arg-type]
        assert (await engine.generate(np.array(IDS), GREEDY)).token_ids == llm.generate([IDS], GREEDY)[0].token_ids
        await engine.close()

    asyncio.run(run())
