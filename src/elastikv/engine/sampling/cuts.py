"""Samplers that leave candidates out, each as llama.cpp has it. None leaves out all."""

from __future__ import annotations

import math

import numpy as np

from elastikv.engine.sampling.candidates import Candidates

# Sorting a whole vocabulary costs more than the model's last layers; this many tokens nearly always
# hold the mass that top_p asks for.
_LIKELY = 1024

_COLDEST = 1e-100
"""Lower temperatures change no draw, but scores, or their squares, would be infinite."""


def top_k(candidates: Candidates, k: int) -> Candidates:
    """The ``k`` likeliest."""
    return candidates.largest(k)


def top_p(candidates: Candidates, p: float) -> Candidates:
    """The fewest whose probabilities add up to ``p`` (Holtzman et al., arXiv:1904.09751)."""
    log_total = candidates.log_total()
    for n in (_LIKELY, len(candidates.scores)):
        likely = candidates.largest(n)
        cumulative = np.cumsum(np.exp(likely.scores - log_total))
        if cumulative[-1] >= p:
            break
    return likely.first(int(np.searchsorted(cumulative, p)) + 1)


def min_p(candidates: Candidates, p: float) -> Candidates:
    """Those at least ``p`` times as likely as the likeliest (Nguyen et al., arXiv:2407.01082)."""
    return candidates.kept(candidates.scores >= float(candidates.scores.max()) + math.log(p))


def typical(candidates: Candidates, p: float) -> Candidates:
    """The fewest with more than ``p`` of the probability, those first whose surprise is nearest to the expected one.

    Meister et al., arXiv:2202.00666. The likeliest may be left out.
    """
    candidates = candidates.kept(np.isfinite(candidates.scores))
    log_probabilities = candidates.scores - candidates.log_total()
    probabilities = np.exp(log_probabilities)
    entropy = -float(np.sum(probabilities * log_probabilities))
    order = np.argsort(np.abs(-log_probabilities - entropy), kind="stable")
    n = int(np.searchsorted(np.cumsum(probabilities[order]), p, side="right")) + 1
    kept = np.zeros(len(order), dtype=bool)
    kept[order[:n]] = True
    return candidates.kept(kept)


def top_n_sigma(candidates: Candidates, n: float) -> Candidates:
    """Those whose logit is at most ``n`` standard deviations below the largest (Tang et al., arXiv:2411.07641)."""
    scores = candidates.scores
    sigma = float(np.std(scores[np.isfinite(scores)], dtype=np.float64))
    return candidates.kept(scores >= float(scores.max()) - n * sigma)


def xtc(candidates: Candidates, probability: float, threshold: float, rng: np.random.Generator) -> Candidates:
    """With ``probability``, all but the least likely of those with at least ``threshold``: exclude the top choices.

    By p-e-w, oobabooga/text-generation-webui#6335.
    """
    if len(candidates.scores) < 2 or rng.random() > probability:
        return candidates
    probabilities = np.exp(candidates.scores - candidates.log_total())
    top = np.flatnonzero((probabilities >= threshold) & np.isfinite(candidates.scores))
    if len(top) < 2:
        return candidates
    kept = np.ones(len(probabilities), dtype=bool)
    kept[top] = False
    kept[top[len(top) - 1 - np.argmin(probabilities[top][::-1])]] = True  # of equals, the one that comes last
    return candidates.kept(kept)


def temperature(candidates: Candidates, divisor: float) -> Candidates:
    """All, with their scores divided by ``divisor``."""
    scores = candidates.scores.astype(np.float64) / max(divisor, _COLDEST)
    return Candidates(candidates.token_ids, scores, candidates.is_sorted)
