"""The sampler against plain formulas, and the frequencies of what it draws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastikv.engine.params import SamplingParams
from elastikv.engine.sampling import Sampler

OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


def draws(params: SamplingParams, logits: list[float] | np.ndarray, n: int = 4000, context: tuple = ()) -> np.ndarray:
    """Relative frequency of each token."""
    row = np.asarray(logits, dtype=np.float32)
    sampler = Sampler(params)
    return np.bincount([sampler.sample(row, context) for _ in range(n)], minlength=len(row)) / n


def softmax(logits: list[float]) -> np.ndarray:
    weights = np.exp(np.asarray(logits) - max(logits))
    return weights / weights.sum()


def test_greedy_takes_the_first_of_the_largest() -> None:
    assert Sampler(SamplingParams(temperature=0)).sample(np.array([1.0, 3.0, 3.0], np.float32), ()) == 1


def test_draws_follow_the_probabilities() -> None:
    logits = [0.0, 1.0, 2.0, -1.0]
    assert draws(SamplingParams(temperature=1, seed=1, **OFF), logits) == pytest.approx(softmax(logits), abs=0.03)


def test_temperature_divides_the_logits() -> None:
    logits = [0.0, 1.0, 2.0]
    frequencies = draws(SamplingParams(temperature=0.5, seed=1, **OFF), logits)
    assert frequencies == pytest.approx(softmax([0.0, 2.0, 4.0]), abs=0.03)


def test_top_k_keeps_the_k_likeliest() -> None:
    frequencies = draws(SamplingParams(temperature=1, seed=1, **{**OFF, "top_k": 2}), [0.0, 1.0, 2.0, -1.0])
    assert frequencies == pytest.approx([0, *softmax([1.0, 2.0]), 0], abs=0.03)


def test_top_p_keeps_the_fewest_tokens_with_that_much_mass() -> None:
    logits = list(np.log([0.5, 0.3, 0.15, 0.05]))
    frequencies = draws(SamplingParams(temperature=1, seed=1, **{**OFF, "top_p": 0.6}), logits)
    assert frequencies == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)


def test_top_p_sees_the_probabilities_before_temperature() -> None:
    """llama.cpp's order. After a temperature of 0.1 the first token alone would have the mass."""
    logits = list(np.log([0.5, 0.3, 0.2]))
    frequencies = draws(SamplingParams(temperature=10, seed=1, **{**OFF, "top_p": 0.7}), logits)
    assert frequencies[2] == 0
    assert frequencies[0] == pytest.approx(0.51, abs=0.03)


def test_min_p_is_relative_to_the_likeliest() -> None:
    logits = list(np.log([0.6, 0.25, 0.1, 0.05]))
    frequencies = draws(SamplingParams(temperature=1, seed=1, **{**OFF, "min_p": 0.4}), logits)
    assert frequencies == pytest.approx([0.6 / 0.85, 0.25 / 0.85, 0, 0], abs=0.03)


def test_top_p_on_a_flat_large_vocabulary_looks_beyond_what_is_sorted_first() -> None:
    logits = np.zeros(4096, dtype=np.float32)
    frequencies = draws(SamplingParams(temperature=1, seed=1, **{**OFF, "top_p": 0.9}), logits, n=2000)
    assert np.count_nonzero(frequencies[2048:3686]) > 100
    assert not frequencies[3700:].any()


def test_the_same_seed_draws_the_same() -> None:
    logits = np.random.default_rng(0).normal(size=50).astype(np.float32)
    first, second, other = (Sampler(SamplingParams(seed=seed)) for seed in (7, 7, 8))
    sequences = [[sampler.sample(logits, ()) for _ in range(50)] for sampler in (first, second, other)]
    assert sequences[0] == sequences[1] != sequences[2]


def test_repeat_penalty_divides_positive_and_multiplies_negative_logits() -> None:
    sampler = Sampler(SamplingParams(temperature=0, repeat_penalty=2.0))
    assert sampler.sample(np.array([3.0, 2.0, -5.0], np.float32), [0]) == 1
    assert sampler.sample(np.array([-1.0, -1.5, -9.0], np.float32), [0]) == 1


def test_frequency_counts_occurrences_and_presence_does_not() -> None:
    row = np.array([3.0, 2.5, 2.2], np.float32)
    assert Sampler(SamplingParams(temperature=0, presence_penalty=0.4)).sample(row, [0, 0, 0]) == 0
    assert Sampler(SamplingParams(temperature=0, frequency_penalty=0.4)).sample(row, [0, 0, 0]) == 1


def test_penalties_look_back_only_so_far() -> None:
    row = np.array([3.0, 2.5], np.float32)
    context = [0] + [1] * 8
    assert Sampler(SamplingParams(temperature=0, presence_penalty=1, repeat_last_n=8)).sample(row, context) == 0
    assert Sampler(SamplingParams(temperature=0, presence_penalty=1, repeat_last_n=9)).sample(row, context) == 0
    assert Sampler(SamplingParams(temperature=0, presence_penalty=1, repeat_last_n=0)).sample(row, context) == 0
    assert Sampler(SamplingParams(temperature=0, presence_penalty=1, repeat_last_n=1)).sample(row, [1, 0]) == 1
    assert Sampler(SamplingParams(temperature=0, frequency_penalty=1, repeat_last_n=-1)).sample(row, [0, 0, 1]) == 1


def test_logit_bias_bans_and_forces() -> None:
    row = np.array([3.0, 2.0, 1.0], np.float32)
    assert Sampler(SamplingParams(temperature=0, logit_bias={0: -100})).sample(row, ()) == 1
    assert Sampler(SamplingParams(temperature=0, logit_bias={2: 100})).sample(row, ()) == 2


def test_ignore_eos_bans_the_end_tokens() -> None:
    row = np.array([3.0, 2.0, 1.0], np.float32)
    assert Sampler(SamplingParams(temperature=0, ignore_eos=True), eos_token_ids=(0, 1)).sample(row, ()) == 2


def test_the_callers_logits_are_left_alone() -> None:
    row = np.array([3.0, 2.0], np.float32)
    Sampler(SamplingParams(logit_bias={0: -5}, repeat_penalty=1.5)).sample(row, [0, 1])
    assert row.tolist() == [3.0, 2.0]


@given(st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=40), st.integers(0, 5), st.data())
def test_top_logprobs_are_the_models_own(logits: list[float], n_top: int, data: st.DataObject) -> None:
    token_id = data.draw(st.integers(0, len(logits) - 1))
    sampler = Sampler(SamplingParams(logprobs=n_top))
    logprob, top = sampler.top_logprobs(np.asarray(logits, np.float32), token_id)
    expected = np.log(softmax(logits))
    assert logprob == pytest.approx(expected[token_id], abs=1e-4)
    assert [score for _, score in top] == pytest.approx(sorted(expected, reverse=True)[:n_top], abs=1e-4)
    assert all(score == pytest.approx(expected[other], abs=1e-4) for other, score in top)


def test_post_sampling_probs_are_of_what_is_left() -> None:
    row = np.array([1.0, 3.0, 2.0, 0.0], np.float32)
    asked = {"logprobs": 3, "post_sampling_probs": True, "top_k": 2, "top_p": 1, "min_p": 0}
    sampler = Sampler(SamplingParams(**asked, temperature=0.5))
    token_id = sampler.sample(row, ())
    logprob, top = sampler.top_logprobs(row, token_id)
    expected = {1: 1 / (1 + np.exp(-2)), 2: 1 / (1 + np.exp(2))}  # the logits 3 and 2, divided by 0.5
    assert {other: np.exp(score) for other, score in top} == pytest.approx(expected)
    assert np.exp(logprob) == pytest.approx(expected[token_id])
    sampler.skip()
    assert sampler.top_logprobs(row, 3) == (0, [(3, 0)])
    greedy = Sampler(SamplingParams(**asked, temperature=0))
    assert greedy.top_logprobs(row, greedy.sample(row, ())) == (0, [(1, 0)])


@given(
    st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=30),
    st.integers(0, 40),
    st.floats(0.01, 1),
    st.floats(0, 1),
    st.floats(0.01, 5),
)
def test_whatever_is_asked_the_likeliest_token_can_be_drawn(
    logits: list[float], top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    """And nothing outside the plain reading of the cuts is drawn."""
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=0)
    row = np.asarray(logits, np.float32)
    order = np.argsort(-row, kind="stable")
    kept = order[: top_k or len(row)]
    probabilities = softmax(row[kept].astype(np.float64).tolist())
    before = np.cumsum(probabilities) - probabilities
    allowed = {
        int(t)
        for t, p, c in zip(kept, probabilities, before, strict=True)
        if c < top_p + 1e-9 and p >= min_p * probabilities[0] - 1e-9
    }
    sampler = Sampler(params)
    assert {sampler.sample(row, ()) for _ in range(20)} <= allowed | {int(order[0])}
