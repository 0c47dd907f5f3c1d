"""Drafts change how fast a text comes, and nothing else: what is taken back, what counts, and where it stays off."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from support.history_model import BYTES_PER_CELL, assert_right, expected_tokens, greedy, prompt
from support.tiny_models import tiny_model

from elastikv import LLM, SamplingParams, SchedulerOptions
from elastikv.engine.drafting import Drafter
from elastikv.errors import InvalidRequest

HYBRID = pytest.mark.parametrize("is_hybrid", [False, True], ids=["attention", "hybrid"])
EAGER = SchedulerOptions(speculation="ngram-simple", ngram_size_n=1)
CODE = "def add(a, b):\n    return a + b\n\n\ndef sub(a, b):\n    return a - b\n\n\n"


@pytest.fixture
def half_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts for the history model of which a third is true, a third wrong from its midst, and a third wrong."""
    chance = random.Random(0)

    def draft(self: Drafter, token_ids: list[int], n_most: int) -> list[int]:
        guess = expected_tokens(token_ids, min(n_most, chance.randrange(6)))
        wrong_at = chance.choice([0, len(guess) // 2, len(guess)])
        return guess[:wrong_at] + [(token + 1) % 384 for token in guess[wrong_at:]]

    monkeypatch.setattr(Drafter, "draft", draft)


# What is guessed


def test_what_followed_the_last_place_is_guessed() -> None:
    drafter = Drafter(2, 8)
    assert drafter.draft([1, 2, 3, 4, 1, 2, 5, 6, 1, 2], 3) == [5, 6, 1]
    assert Drafter(2, 8).draft([1, 2, 3, 4], 3) == []
    assert Drafter(3, 8).draft([1, 2], 3) == []
    assert Drafter(2, 8).draft([7, 7, 7], 4) == [7, 7, 7, 7], "a repetition goes on"
    assert Drafter(1, 8).draft([256, 1, 2, 1 << 24, 9, 1], 2) == [2, 1 << 24], "tokens are not found between tokens"
    assert Drafter(1, 8).draft([1, 0, 0], 2) == [0, 0]


def test_more_is_guessed_while_it_comes_true_and_nothing_for_a_while_once_it_does_not() -> None:
    drafter, text = Drafter(1, 16), [7] * 50
    sizes = []
    for _ in range(4):
        sizes.append(len(drafter.draft(text, 100)))
        drafter.learn(len(text), sizes[-1], sizes[-1])
    assert sizes == [4, 8, 16, 16]
    drafter.learn(len(text), 16, 1)
    assert drafter.draft([*text, 7], 100) == []
    assert len(drafter.draft([*text, 7, 7], 100)) == 2
    for n in range(20):
        drafter.learn(100, 2, 0)
        assert drafter.draft([7] * (100 + min(2 ** (n + 2), 256) - 1), 100) == []
    assert len(drafter.draft([7] * 400, 100)) == 1


# Every text is what it would be


@HYBRID
@pytest.mark.parametrize("storage", ["mmap", "copy"])
def test_texts_are_the_same_whatever_part_of_the_drafts_is_right(
    rig, half_right, storage: str, is_hybrid: bool
) -> None:
    r = rig(speculation="ngram-simple", storage=storage, is_hybrid=is_hybrid)
    requests = [r.scheduler.submit(prompt(i, 5 + 17 * i), greedy(40 + i)) for i in range(7)]
    r.run(*requests)
    assert [request.n_generated for request in requests] == list(range(40, 47))
    assert_right(*requests)
    outputs = [request.output(0.0) for request in requests]
    assert all(0 < output.timings.draft_n_accepted < output.timings.draft_n for output in outputs)


def test_drafts_save_steps(rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Drafter, "draft", lambda self, token_ids, n_most: expected_tokens(token_ids, min(n_most, 4)))
    r = rig(speculation="ngram-simple")
    request = r.scheduler.submit(prompt(0, 5), greedy(51))
    n_steps = 0
    while not request.finished:
        r.scheduler.step()
        n_steps += 1
    assert n_steps == 11, "the prompt's, and then five tokens each"
    assert_right(request)
    assert request.output(0.0).timings.draft_n == request.output(0.0).timings.draft_n_accepted == 40


@HYBRID
def test_small_batches_and_n_ctx_bound_drafts(rig, half_right, is_hybrid: bool) -> None:
    r = rig(speculation="ngram-simple", is_hybrid=is_hybrid, n_parallel=4, n_batch=5, n_ubatch=3, n_ctx=48)
    requests = [r.scheduler.submit(prompt(i, 5 + i), SamplingParams(temperature=0, max_tokens=None)) for i in range(6)]
    r.run(*requests)
    assert all(len(request.token_ids) == 48 for request in requests)
    assert_right(*requests)


@pytest.mark.parametrize("parks", [False, True])
def test_preempted_and_parked_they_are_the_same(rig, half_right, tmp_path, parks: bool) -> None:
    park_dir = tmp_path if parks else None
    r = rig(speculation="ngram-simple", budget=150 * BYTES_PER_CELL, park_dir=park_dir)
    requests = [r.scheduler.submit(prompt(i, 20 + i), greedy(60)) for i in range(4)]
    r.run(*requests)
    assert "preempt" in r.kinds()
    assert_right(*requests)
    again = r.scheduler.submit([*requests[3].token_ids, 5], greedy(20))
    r.run(again)
    assert again.cached_tokens > 0
    assert_right(again)


def test_a_draft_that_does_not_fit_costs_nobody_anything(rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes before an idle session does; what is certain then gets its room."""
    r = rig(speculation="ngram-simple")
    idle = r.scheduler.submit(prompt(9, 20), greedy(5))
    r.run(idle)
    request = r.scheduler.submit(prompt(1, 20), greedy(40))
    while request.n_generated < 2:
        r.scheduler.step()
    monkeypatch.setattr(Drafter, "draft", lambda self, token_ids, n_most: [1] * min(n_most, 40))
    r.budget.set_limit(r.budget.committed_bytes + 24 * BYTES_PER_CELL)
    while request.n_generated < 10:
        r.scheduler.step()
    assert "refusal" in r.kinds()
    assert "release" not in r.kinds()
    r.run(request)
    assert_right(request)


@HYBRID
def test_interrupted_anywhere_it_goes_on_right(rig, half_right, is_hybrid: bool) -> None:
    """A step that stops between its parts leaves drafts in memory, which the next one takes back."""
    for name in ("_sample", "_keep_checkpoints", "_retire_finished"):
        r = rig(speculation="ngram-simple", is_hybrid=is_hybrid)
        request = r.scheduler.submit(prompt(1, 20), greedy(60))
        original = getattr(r.scheduler, name)
        n_calls = 0

        def interrupt(*arguments, original=original) -> None:
            nonlocal n_calls
            n_calls += 1
            if n_calls % 3 == 0:
                raise KeyboardInterrupt
            original(*arguments)

        setattr(r.scheduler, name, interrupt)
        for _ in range(500):
            try:
                r.run(request, n_steps=500)
                break
            except KeyboardInterrupt:
                continue
        assert_right(request)
        delattr(r.scheduler, name)
        after = r.scheduler.submit([*request.token_ids, 3], greedy(20))
        r.run(after)
        assert_right(after)


@HYBRID
def test_an_interrupted_choice_leaves_cells_that_others_may_reuse(rig, half_right, monkeypatch, is_hybrid) -> None:
    r = rig(speculation="ngram-simple", is_hybrid=is_hybrid)
    request = r.scheduler.submit(prompt(1, 40), greedy(60))
    while request.n_generated < 20:
        r.scheduler.step()
    monkeypatch.setattr(Drafter, "draft", lambda self, token_ids, n_most: [1, 2, 3])
    monkeypatch.setattr(request, "accept", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        r.scheduler.step()
    monkeypatch.undo()
    r.scheduler.step()
    after = r.scheduler.submit([*request.token_ids, 1, 2, 3], greedy(20))
    r.run(after)
    assert_right(after)


def test_a_right_draft_of_recurrent_layers_saves_steps(rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong one is taken back with all of its step; what of it was right comes again along with the next token."""
    r = rig(speculation="ngram-simple", is_hybrid=True)
    drafts: list[int] = []

    def draft(self: Drafter, token_ids: list[int], n_most: int) -> list[int]:
        guess = expected_tokens(token_ids, n_most)
        drafts.append(len(guess))
        return guess if len(drafts) % 2 else [*guess[:-1], (guess[-1] + 1) % 384]

    monkeypatch.setattr(Drafter, "draft", draft)
    request = r.scheduler.submit(prompt(0, 5), greedy(8 + 7 + 1 + 1))
    n_steps = 0
    while not request.finished:
        r.scheduler.step()
        n_steps += 1
    assert_right(request)
    assert drafts == [7, 7, 0], "with what comes again there is no room for another"
    assert n_steps == 4


# With models


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LLM, LLM]]:
    model = tiny_model("llama", tmp_path_factory.mktemp("llama"))
    same = {"n_ctx": 1024, "n_threads": 1, "kernels": "cpu"}  # from the first token on
    with LLM(model, **same) as off, LLM(model, **same, scheduler=EAGER) as on:
        yield off, on


def texts(llm: LLM, prompts, params) -> list[tuple[list[int], str, str | None]]:
    outputs = llm.generate(prompts, params)
    return [(output.token_ids, output.text, output.finish_reason) for output in outputs]


def test_a_text_that_repeats_itself_is_guessed(pair: tuple[LLM, LLM]) -> None:
    before, after = (llm.generate(CODE * 3 + "def add(", greedy(200, ignore_eos=True))[0] for llm in pair)
    assert before.token_ids == after.token_ids
    assert before.timings.draft_n == 0 < after.timings.draft_n_accepted <= after.timings.draft_n


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0},
        {"temperature": 0, "stop": ["return", "\n\n\n"]},
        {"temperature": 0, "repeat_penalty": 1.2, "frequency_penalty": 0.3},
        {"temperature": 0.8, "seed": 4},
        {"temperature": 1.5, "seed": 5, "top_k": 0, "top_p": 1, "min_p": 0},
        {"temperature": 0.5, "seed": 6, "regex": "(def [a-z]{3}[(]a, b[)]: pass\n){3}"},
        {"temperature": 0, "json_schema": {"type": "array", "items": {"enum": [100, 101]}, "maxItems": 9}},
    ],
)
def test_texts_are_the_same_with_seeds_stops_and_forms(pair: tuple[LLM, LLM], params: dict) -> None:
    prompts = [CODE * 2 + "def mul(", CODE, "Once upon a time", CODE, CODE]  # three choices of one prompt among them
    params = [SamplingParams(max_tokens=60, **params)] * len(prompts)
    assert texts(pair[0], prompts, params) == texts(pair[1], prompts, params)


def test_log_probabilities_come_one_a_token(pair: tuple[LLM, LLM]) -> None:
    before, after = (llm.generate(CODE * 2, greedy(40, logprobs=2))[0] for llm in pair)
    assert [each.token_id for each in after.logprobs or []] == after.token_ids == before.token_ids
    assert [each.logprob for each in after.logprobs] == pytest.approx(
        [each.logprob for each in before.logprobs], abs=1e-3
    )


@pytest.mark.parametrize("architecture", ["mistral", "qwen3_5"])
def test_windows_and_recurrent_layers_change_no_text(tmp_path, architecture: str) -> None:
    """Behind a window it stops once the beginning has gone; recurrent layers go back by steps."""
    model = tiny_model(architecture, tmp_path)
    prompts = [prompt(seed, 5 + seed) * 2 for seed in range(6)]
    same = {"n_ctx": 512, "n_threads": 1, "kernels": "cpu"}
    with LLM(model, **same) as off, LLM(model, **same, scheduler=EAGER) as on:
        before, after = (llm.generate(prompts, greedy(60, ignore_eos=True)) for llm in (off, on))
    assert [output.token_ids for output in before] == [output.token_ids for output in after]
    assert any(output.timings.draft_n for output in after)


@pytest.mark.slow
def test_a_thousand_greedy_texts_are_the_same(pair: tuple[LLM, LLM]) -> None:
    chance = random.Random(1)
    prompts = [[chance.randrange(384) for _ in range(chance.randrange(3, 40))] for _ in range(1000)]
    before, after = (llm.generate(prompts, greedy(40, ignore_eos=True)) for llm in pair)
    different = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a.token_ids != b.token_ids]
    assert not different
    assert sum(output.timings.draft_n_accepted for output in after) > 1000


@pytest.mark.parametrize(
    "bad", [{"speculation": "draft"}, {"speculation": True}, {"ngram_size_n": 0}, {"ngram_size_m": 0}]
)
def test_bad_options_are_refused_by_name(bad: dict) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(bad))):
        SchedulerOptions(**bad)
