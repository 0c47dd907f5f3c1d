"""DRY, XTC, typical, top-n-sigma and the order of samplers, by hand. Beside llama.cpp's: test_samplers_llama_cpp.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.tiny_tokenizers import byte_level_tokenizer

from elastikv import LLM
from elastikv.engine.params import SAMPLERS, SamplingParams
from elastikv.engine.sampling import Breakers, BreakersOfTokenizer, Sampler
from elastikv.errors import InvalidRequest
from elastikv.weights.tokenizer import Tokenizer

OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0, "seed": 0}
FALLING = np.log(np.float32([0.4, 0.3, 0.2, 0.1]))


def left(row: np.ndarray, context: tuple[int, ...] = (), allowed: np.ndarray | None = None, **settings: Any) -> list:
    """Ids of the tokens that may be drawn."""
    candidates = Sampler(SamplingParams(**{**OFF, **settings})).candidates(row, context, allowed)
    token_ids = np.arange(len(row)) if candidates.token_ids is None else candidates.token_ids
    return sorted(token_ids[np.isfinite(candidates.scores)].tolist())


def test_xtc_leaves_the_least_likely_of_the_top_choices() -> None:
    xtc = {"xtc_probability": 1.0}
    assert left(FALLING, **xtc, xtc_threshold=0.15) == [2, 3]
    assert left(FALLING, **xtc, xtc_threshold=0.35) == [0, 1, 2, 3]  # one top choice stays
    assert left(FALLING, **xtc, xtc_threshold=0.51) == [0, 1, 2, 3]
    assert left(FALLING, **xtc, xtc_threshold=0.0) == [3]
    assert left(FALLING, allowed=np.array([True, True, False, False]), **xtc, xtc_threshold=0.0) == [1]


def test_xtc_is_applied_as_often_as_asked() -> None:
    sampler = Sampler(SamplingParams(**OFF, xtc_probability=0.3, xtc_threshold=0.15))
    n_full = sum(len(sampler.candidates(FALLING, ()).scores) == 4 for _ in range(2000))
    assert n_full / 2000 == pytest.approx(0.7, abs=0.04)


def test_typical_may_leave_out_the_likeliest() -> None:
    """Entropy 1.36 of 0.5, 0.2, 0.2, 0.1 (surprises 0.69, 1.61, 1.61, 2.30): the two in the middle are nearest."""
    row = np.log(np.float32([0.5, 0.2, 0.2, 0.05, 0.05]))
    assert left(row, typical_p=0.35) == [1, 2]
    assert left(row, typical_p=0.35, temperature=0.5) == [1, 2]
    assert Sampler(SamplingParams(temperature=0, typical_p=0.35)).sample(row, ()) == 1
    assert left(row, allowed=np.array([False, False, False, True, True]), typical_p=0.9) == [3, 4]


def test_top_n_sigma_counts_standard_deviations_from_the_top() -> None:
    row = np.float32([4, 2, 0, -2, -4])  # a standard deviation of 2.83
    assert left(row, top_n_sigma=0.5) == [0]
    assert left(row, top_n_sigma=1) == [0, 1]
    assert left(row, top_n_sigma=2) == [0, 1, 2]
    assert left(np.float32([1, 1]), top_n_sigma=1) == [0, 1]
    assert left(row, allowed=np.array([True, False, True, False, False]), top_n_sigma=1.5) == [0]


def cost(context: list[int], token_id: int, breakers: Breakers | None = None, **settings: Any) -> float:
    """What DRY takes from the logit of a token."""
    params = SamplingParams(**{**OFF, "dry_multiplier": 1.0, "dry_base": 2.0, **settings})
    candidates = Sampler(params, (), breakers).candidates(np.zeros(300, np.float32), context)
    return -float(candidates.scores[token_id])


def test_dry_costs_more_for_each_token_that_is_repeated() -> None:
    assert [cost([1, 2, 3, 4, 5, *again], again[-1] + 1) for again in ([1], [1, 2], [1, 2, 3], [1, 2, 3, 4])] == [
        0,
        1,
        2,
        4,
    ]
    assert cost([1, 2, 3, 4, 1, 2], 5) == 0
    assert cost([1, 2, 3, 4, 1, 2], 3, dry_allowed_length=3) == 0
    assert cost([1, 2, 3, 4, 1, 2], 3, dry_penalty_last_n=5) == 0
    assert cost([9] * 100 + [1, 2, 3, 4] + [8] * 100 + [1, 2], 3, dry_penalty_last_n=-1) == 1
    assert cost([8, 1, 2, 7, 3, 8, 1, 2, 3, 1, 2], 3) == 1  # the longest that goes on with 3 ...
    assert cost([8, 1, 2, 7, 3, 8, 1, 2, 3, 1, 2], 7) == 1
    assert cost([1, 2, 3, 0, 2, 4, 1, 2], 4, dry_allowed_length=1) == 1  # ... and with 4


def test_dry_stays_finite() -> None:
    assert np.isfinite(cost([1] * 3000, 1, dry_penalty_last_n=-1, dry_multiplier=1e30, dry_base=1e30))


def test_dry_of_what_is_left_only() -> None:
    """After a cut it finds its tokens among those that are left."""
    row = np.float32([0, 3, 2, 3, 1])
    settings = {"dry_multiplier": 9.0, "top_k": 3, "samplers": ["top_k", "dry", "top_p"], "top_p": 0.4}
    assert left(row, (1, 2, 3, 1, 2), **settings) == [1]
    assert left(row, (1, 2, 0, 1, 2), **settings, dry_allowed_length=2) == [1]


def test_no_repetition_goes_across_a_breaker() -> None:
    breaker = Breakers({9: [()]})
    context = [1, 2, 9, 3, 4, 5, 1, 2, 9, 3, 4]
    assert (cost(context, 5), cost(context, 5, breaker)) == (8, 1)
    assert cost([1, 2, 9, 1, 2], 9, breaker) == 0  # nor does the breaker itself cost anything
    pair = Breakers({9: [(3,)]})  # it has begun with 9, and is complete with 3
    assert cost(context, 5, pair) == cost([3, 4, 5, 4], 5) == 0
    assert cost([1, 2, 9, 4, 5, 1, 2, 9, 4], 5, pair) == 4


def test_breakers_are_found_among_the_tokens() -> None:
    tokenizer = Tokenizer(byte_level_tokenizer("qwen2"))
    find = BreakersOfTokenizer(tokenizer).find
    colon, newline = (tokenizer.encode(text)[0] for text in (":", "\n"))
    both = find((":", "\n"))
    assert both.breaks(colon)
    assert both.breaks(newline)
    assert not both.breaks(tokenizer.encode("a")[0])
    assert find((":", "\n")) is both
    long = find(("z;z",))
    context = np.array([*tokenizer.encode("a"), *tokenizer.encode("z;z"), *tokenizer.encode("b")])
    assert long.n_since(context) == 1
    assert long.n_since(context[:-2]) == len(context) - 2


def test_breakers_need_a_tokenizer() -> None:
    find = BreakersOfTokenizer(Tokenizer(None)).find
    assert not find(()).breaks(0)
    with pytest.raises(InvalidRequest, match=r"dry_sequence_breakers=\[\]"):
        find(("x",))


def test_the_order_counts() -> None:
    """Of 0.6, 0.3, 0.1 a temperature of 10 makes nearly equal parts."""
    row = np.log(np.float32([0.6, 0.3, 0.1]))
    settings = {"top_p": 0.55, "temperature": 10.0}
    assert left(row, **settings) == [0]
    assert left(row, **settings, samplers=["temperature", "top_p"]) == [0, 1]
    assert left(row, **settings, samplers="tp") == [0, 1]
    assert left(row, **settings, samplers=["temperature"]) == [0, 1, 2]
    assert left(row, (0,), repeat_penalty=2.0, samplers="ek", top_k=1) == [0]
    assert left(row, (0,), repeat_penalty=9.0, samplers="ek", top_k=1) == [1]
    assert left(row, (0,), repeat_penalty=9.0, samplers="ke", top_k=1) == [0]
    assert left(row, (0,), repeat_penalty=9.0, samplers="k", top_k=1) == [0]


def test_what_is_not_named_is_not_applied() -> None:
    assert left(FALLING, top_k=1, top_p=0.1, min_p=1.0, top_n_sigma=0.1, samplers=[]) == [0, 1, 2, 3]
    sampler = Sampler(SamplingParams(temperature=0, seed=0, samplers=""))  # nor is it greedy then
    assert len({sampler.sample(FALLING, ()) for _ in range(50)}) > 1


@pytest.mark.parametrize("samplers", ["edskypmxt", [name.replace("_", "-").upper() for name in SAMPLERS], SAMPLERS])
def test_names_of_samplers(samplers: Any) -> None:
    assert SamplingParams(samplers=samplers) == SamplingParams()


def test_other_names_of_samplers() -> None:
    assert SamplingParams(samplers=["nucleus", "temp", "typ", "typical_p", "topk"]).samplers == (
        ("top_p", "temperature", "typ_p", "typ_p", "top_k")
    )


def test_a_temperature_next_to_zero_is_like_zero() -> None:
    sampler = Sampler(SamplingParams(temperature=5e-324, seed=0, top_n_sigma=1.0, samplers="tskpm"))
    assert {sampler.sample(FALLING, ()) for _ in range(20)} == {0}


def test_what_is_off_is_no_step() -> None:
    """So that it costs nothing; greedily, nor do cuts that the likeliest token survives."""
    assert len(Sampler(SamplingParams())._steps) == 4  # top_k, top_p, min_p, temperature
    assert len(Sampler(SamplingParams(**OFF))._steps) == 0
    assert len(Sampler(SamplingParams(temperature=0, top_n_sigma=1.0))._steps) == 0
    assert len(Sampler(SamplingParams(temperature=0, xtc_probability=0.5))._steps) == 4


def test_a_model_that_repeats_itself_stops_doing_so() -> None:
    """From end to end: greedy text of one form has no room but to repeat, unless that costs."""
    params = {"temperature": 0, "max_tokens": 40, "regex": "(ab|cd|ef|gh)*"}
    with LLM(n_ctx=256, n_threads=1, kernels="reference") as llm:
        plain = llm.generate("abababab", SamplingParams(**params))[0].text
        dry = llm.generate("abababab", SamplingParams(**params, dry_multiplier=50.0, dry_base=1.0))[0].text
    assert plain != dry
    pairs = [dry[i : i + 4] for i in range(0, len(dry) - 4, 2)]
    assert len(set(pairs)) > len({plain[i : i + 4] for i in range(0, len(plain) - 4, 2)})
