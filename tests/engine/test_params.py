"""SamplingParams: what is refused, and that the message names the field and a remedy."""

from __future__ import annotations

import math

import pytest

from elastikv.engine.params import SamplingParams
from elastikv.errors import InvalidRequest


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 2.0),
        ("repeat_penalty", 0.0),
        ("presence_penalty", 2.5),
        ("frequency_penalty", -2.5),
        ("repeat_last_n", -2),
        ("dry_multiplier", -1),
        ("dry_base", 0.5),
        ("dry_allowed_length", -1),
        ("dry_allowed_length", None),
        ("dry_penalty_last_n", -2),
        ("dry_sequence_breakers", "\n"),
        ("dry_sequence_breakers", [""]),
        ("dry_sequence_breakers", [3]),
        ("dry_sequence_breakers", ["x" * 41]),
        ("dry_sequence_breakers", ["x"] * 65),
        ("top_n_sigma", math.nan),
        ("typical_p", 1.5),
        ("xtc_probability", 1.1),
        ("xtc_threshold", -0.1),
        ("samplers", ["top_k", "mirostat"]),
        ("samplers", "kq"),
        ("samplers", ["infill"]),
        ("samplers", None),
        ("seed", 0.5),
        ("max_tokens", -1),
        ("max_tokens", 2.0),
        ("logprobs", 21),
        ("logprobs", True),
        ("stop", ["a", ""]),
        ("stop", [3]),
        ("logit_bias", {1: 101.0}),
        ("logit_bias", {"1": 1.0}),
    ],
)
def test_a_bad_value_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=field):
        SamplingParams(**{field: value})


def test_an_unknown_sampler_is_named_beside_those_there_are() -> None:
    with pytest.raises(
        InvalidRequest, match=r"samplers: 'i' is none of penalties \(e\), dry \(d\), .* temperature \(t\)"
    ):
        SamplingParams(samplers="ki")


def test_the_message_says_what_would_be_right() -> None:
    with pytest.raises(InvalidRequest, match="top_p must be above 0 and at most 1, got 2; 1 keeps all tokens"):
        SamplingParams(top_p=2)


def test_one_stop_string_may_stand_alone() -> None:
    assert SamplingParams(stop="end").stops == ("end",)
    assert SamplingParams(stop=["a", "b"]).stops == ("a", "b")
    assert SamplingParams().stops == ()


def test_the_edges_are_allowed() -> None:
    SamplingParams(temperature=0, top_k=0, top_p=1, min_p=1, seed=-1, max_tokens=None, logprobs=0, logit_bias={0: -100})
