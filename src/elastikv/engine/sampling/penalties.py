"""Samplers that make tokens less likely for what has been said."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from elastikv.engine.params import SamplingParams
from elastikv.engine.sampling.breakers import Breakers
from elastikv.engine.sampling.candidates import Candidates

_LARGEST = float(np.finfo(np.float32).max)


def penalised(candidates: Candidates, context: Sequence[int], params: SamplingParams) -> Candidates:
    """Keskar et al., arXiv:1909.05858, for repeat_penalty; OpenAI's formula for presence and frequency."""
    token_ids, counts = np.unique(_recent(context, params.repeat_last_n), return_counts=True)
    places, which = candidates.places_of(token_ids)
    seen = candidates.scores[places]
    seen = np.where(seen > 0, seen / params.repeat_penalty, seen * params.repeat_penalty)
    penalties = params.presence_penalty + params.frequency_penalty * counts[which]
    return candidates.rescored(places, seen - penalties)


def dry(candidates: Candidates, context: Sequence[int], params: SamplingParams, breakers: Breakers) -> Candidates:
    """Don't repeat yourself: a token that would go on with a repetition costs the more the longer that is.

    By p-e-w, oobabooga/text-generation-webui#5677, with llama.cpp's bounds. The cost is
    ``multiplier * base ** (length - allowed_length)``, where the last ``length`` tokens stood before that token before.
    """
    recent, allowed = _recent(context, params.dry_penalty_last_n), params.dry_allowed_length
    limit = breakers.n_since(recent)
    if len(recent) <= allowed or limit < allowed:
        return candidates
    # float32 can't tell longer repetitions apart.
    most = math.log(_LARGEST) / math.log(params.dry_base) if params.dry_base > 1 else 0
    lengths = _repeated(recent, int(min(limit, allowed + most)))
    goes_on = lengths >= allowed
    token_ids, inverse = np.unique(recent[1:][goes_on], return_inverse=True)
    longest = np.zeros(len(token_ids), dtype=np.int64)
    np.maximum.at(longest, inverse, lengths[goes_on])
    costs = np.minimum(params.dry_multiplier * params.dry_base ** (longest - allowed).astype(np.float64), _LARGEST)
    costs[np.array([breakers.breaks(token_id) for token_id in token_ids.tolist()], dtype=bool)] = 0
    places, which = candidates.places_of(token_ids)
    return candidates.rescored(places, candidates.scores[places] - costs[which])


def _repeated(recent: np.ndarray, limit: int) -> np.ndarray:
    """For each place but the last, how many tokens up to it are the same as those at the end; at most ``limit``."""
    last = len(recent) - 1
    lengths = np.zeros(last, dtype=np.int64)
    ends = np.arange(last)
    for length in range(limit):
        ends = ends[ends >= length]
        ends = ends[recent[ends - length] == recent[last - length]]
        if not len(ends):
            break
        lengths[ends] = length + 1
    return lengths


def _recent(context: Sequence[int], last_n: int) -> np.ndarray:
    n = len(context) if last_n < 0 else min(last_n, len(context))
    return np.asarray(context[len(context) - n :], dtype=np.int64)
