"""llama.cpp's flags of samplers, and what they mean."""

from __future__ import annotations

import argparse

import pytest

from elastikv.cli.options import add_sampling_arguments, sampling_from_args
from elastikv.engine.params import SamplingParams


def read(*flags: str) -> SamplingParams:
    parser = argparse.ArgumentParser()
    add_sampling_arguments(parser, n_predict=8)
    return sampling_from_args(parser.parse_args(flags))


def test_without_flags_the_defaults_hold():
    assert read() == SamplingParams(max_tokens=8)


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        (["--dry-multiplier", "0.8", "--dry-base", "2"], {"dry_multiplier": 0.8, "dry_base": 2.0}),
        (["--dry-allowed-length", "3"], {"dry_allowed_length": 3}),
        (["--dry-penalty-last-n", "-1"], {"dry_penalty_last_n": -1}),
        (["--dry-sequence-breaker", "none"], {"dry_sequence_breakers": ()}),
        (
            ["--dry-sequence-breaker", r"\n", "--dry-sequence-breaker", "ä\\\\"],
            {"dry_sequence_breakers": ("\n", "ä\\")},
        ),
        (
            ["--dry-sequence-breaker", "a", "--dry-sequence-breaker", "none", "--dry-sequence-breaker", "b"],
            {"dry_sequence_breakers": ("b",)},
        ),
        (["--top-nsigma", "1.5"], {"top_n_sigma": 1.5}),
        (["--top-n-sigma", "1.5"], {"top_n_sigma": 1.5}),
        (["--typical", "0.5"], {"typical_p": 0.5}),
        (["--typical-p", "0.5"], {"typical_p": 0.5}),
        (["--xtc-probability", "0.5", "--xtc-threshold", "0.2"], {"xtc_probability": 0.5, "xtc_threshold": 0.2}),
        (["--samplers", "top_k;temperature"], {"samplers": ["top_k", "temperature"]}),
        (["--samplers", "temp"], {"samplers": ["temperature"]}),
        (["--sampler-seq", "kt"], {"samplers": ["top_k", "temperature"]}),
        (["--sampling-seq", "tk"], {"samplers": ["temperature", "top_k"]}),
    ],
)
def test_flags(flags, settings):
    assert read(*flags) == SamplingParams(max_tokens=8, **settings)


def test_a_wrong_name_is_one_line(elastikv, model_path):
    result = elastikv("run", "-m", model_path, "-p", "x", "--samplers", "top_k;magic")
    assert result.code != 0
    assert "'magic' is none of penalties (e)" in result.err
    assert "Traceback" not in result.err
    assert result.err.count("\n") == 1
