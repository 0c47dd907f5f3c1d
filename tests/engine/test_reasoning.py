"""Thoughts: a bound on them, and a form of what follows them. The demo model does not think; its texts stand for it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from elastikv import LLM, Reasoning, SamplingParams
from elastikv.errors import InvalidRequest


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(n_ctx=2048, n_threads=1, kernels="reference") as demo:
        yield demo


def say(llm: LLM, prompt: str = "x = ", **params) -> str:
    return llm.generate(prompt, SamplingParams(**{"max_tokens": 100, "seed": 1, **params}))[0].text


@pytest.mark.parametrize("logprobs", [None, 0])
@pytest.mark.parametrize("budget", [0, 1, 7])
def test_a_budget_closes_the_thoughts(llm: LLM, budget: int, logprobs: int | None) -> None:
    reasoning = Reasoning(is_open=True, budget=budget)
    output = llm.generate("<think>", SamplingParams(reasoning=reasoning, logprobs=logprobs, max_tokens=40, seed=1))[0]
    thoughts, _, _ = output.text.partition("\n</think>\n\n")
    n_close = len(llm.tokenizer.encode("\n</think>\n\n", add_special=False))
    assert llm.tokenizer.decode(output.token_ids[:budget]) == thoughts
    assert llm.tokenizer.decode(output.token_ids[budget : budget + n_close]) == "\n</think>\n\n"
    if logprobs is not None:
        assert [token.token_id for token in output.logprobs] == output.token_ids


@pytest.mark.parametrize("budget", [0, 9])
def test_a_form_begins_after_the_thoughts(llm: LLM, budget: int) -> None:
    for forced in ({}, {"logprobs": 0}):
        text = say(llm, reasoning=Reasoning(is_open=True, budget=budget), regex="[abc]{4}", **forced)
        assert re.search(r"</think>\n\n[abc]{4}$", text)


def test_a_form_begins_where_the_model_itself_ends_its_thoughts(llm: LLM) -> None:
    """Every text has a line's end somewhere."""
    text = say(llm, reasoning=Reasoning(end="\n", is_open=True), regex="[abc]{4}", max_tokens=300)
    assert re.search(r"^[^\n]*\n\s*[abc]{4}$", text)


def test_a_model_that_may_think_first_need_not(llm: LLM) -> None:
    """The line's end as what thoughts begin with, for the demo model has no token of its own for it."""
    line = llm.tokenizer.encode("\n", add_special=False)
    assert len(line) == 1
    start = llm.tokenizer.require_backend().id_to_token(line[0])
    may = Reasoning(start=start, end="!", budget=5)
    bias = {line[0]: 100.0}
    thought = say(llm, reasoning=may, regex="[abc]{4}", logit_bias=bias)
    assert thought.startswith("\n")
    assert re.search(r"\n!\n\n[abc]{4}$", thought)
    assert re.fullmatch("[abc]{4}", say(llm, reasoning=may, regex="[abc]{4}", logit_bias={line[0]: -100.0}))


@pytest.mark.parametrize("bad", [{"budget": -1}, {"budget": 0.5}, {"start": ""}, {"end": None}])
def test_what_is_no_reasoning_is_refused_by_name(bad: dict) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(bad))):
        Reasoning(**bad)
    with pytest.raises(InvalidRequest, match="reasoning must be Reasoning"):
        SamplingParams(reasoning="deepseek")
