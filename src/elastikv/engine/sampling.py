"""From logits to a token. Works on one row of float32 logits; nothing here knows sequences or text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from elastikv.engine.params import SamplingParams

Row = np.ndarray
"""float32 ``[n_vocab]``"""

# Sorting a whole vocabulary costs more than the model's last layers; this many tokens nearly always
# hold the mass that top_p asks for.
_LIKELY = 1024


class Sampler:
    """Chooses the tokens of one generation; holds its random generator, so draws are its own."""

    def __init__(self, params: SamplingParams, eos_token_ids: Sequence[int] = ()) -> None:
        self._params = params
        # numpy wants seeds >= 0; users of other engines also pass negative ones.
        self._rng = np.random.default_rng(None if params.seed is None else params.seed % 2**64)
        bias = dict(params.logit_bias or {})
        if params.ignore_eos:
            bias.update(dict.fromkeys(eos_token_ids, -np.inf))
        self._bias_ids = np.fromiter(bias.keys(), dtype=np.int64, count=len(bias))
        self._bias = np.fromiter(bias.values(), dtype=np.float32, count=len(bias))

    def sample(self, logits: Row, context: Sequence[int], allowed: np.ndarray | None = None) -> int:
        """The next token after ``context`` (prompt and generated tokens). ``logits`` are left as they are.

        allowed: bool ``[n_vocab]``, the tokens to choose from; None: all.
        """
        params = self._params
        adjusted = self._adjust(logits, context)
        if allowed is not None:
            adjusted = _masked(adjusted, allowed)
            if adjusted.max() == -np.inf:  # a bias bans all that is allowed: the text has come to its end
                adjusted = _masked(logits, allowed)
        logits = adjusted
        if params.temperature == 0:
            return int(np.argmax(logits))
        token_ids, scores, log_total = _candidates(logits, params.top_k, params.top_p)
        # Without min_p even what is not allowed would be kept, and a sum's last rounding might draw it.
        kept = _kept(np.exp(scores - log_total), params.top_p, params.min_p) & np.isfinite(scores)
        token_ids, scores = token_ids[kept], scores[kept]
        cumulative = np.cumsum(np.exp((scores - scores.max()) / params.temperature))
        drawn = int(np.searchsorted(cumulative, self._rng.random() * cumulative[-1], side="right"))
        return int(token_ids[min(drawn, len(token_ids) - 1)])

    def _adjust(self, logits: Row, context: Sequence[int]) -> Row:
        """Bias and penalties, on a copy if there are any."""
        params = self._params
        penalised = params.repeat_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0
        if not penalised and not len(self._bias_ids):
            return logits
        logits = logits.copy()
        logits[self._bias_ids] += self._bias
        if penalised:
            self._penalise(logits, context)
        return logits

    def _penalise(self, logits: Row, context: Sequence[int]) -> None:
        """Keskar et al., arXiv:1909.05858, for repeat_penalty; OpenAI's formula for the other two."""
        params = self._params
        n_recent = len(context) if params.repeat_last_n < 0 else min(params.repeat_last_n, len(context))
        recent = np.asarray(context[len(context) - n_recent :], dtype=np.int64)
        token_ids, counts = np.unique(recent, return_counts=True)
        seen = logits[token_ids]
        seen = np.where(seen > 0, seen / params.repeat_penalty, seen * params.repeat_penalty)
        logits[token_ids] = seen - params.presence_penalty - params.frequency_penalty * counts


def _masked(logits: Row, allowed: np.ndarray) -> Row:
    return np.where(allowed, logits, np.float32(-np.inf))


def top_logprobs(logits: Row, token_id: int, n_top: int) -> tuple[float, list[tuple[int, float]]]:
    """The log probability of ``token_id``, and the ``n_top`` most likely tokens with theirs.

    Of the model's own distribution: before bias, penalties, truncation (top_k, top_p, min_p) and temperature.
    """
    log_total = _log_sum_exp(logits)
    token_ids, scores = _largest(logits, n_top) if n_top else (np.empty(0, np.int64), np.empty(0))
    top = [(int(other), float(score) - log_total) for other, score in zip(token_ids, scores, strict=True)]
    return float(logits[token_id]) - log_total, top


def _candidates(logits: Row, top_k: int, top_p: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Token ids and logits, and the log of the mass their probabilities refer to.

    The ``top_k`` tokens are a distribution of their own; otherwise the whole vocabulary is the reference.
    Only ``top_p`` needs an order (most likely first), and no more is sorted than it can want.
    """
    if top_k:
        token_ids, scores = _largest(logits, top_k)
        return token_ids, scores, _log_sum_exp(scores)
    log_total = _log_sum_exp(logits)
    if top_p == 1:
        return np.arange(len(logits)), logits.astype(np.float64), log_total
    token_ids, scores = _largest(logits, _LIKELY)
    if np.exp(scores - log_total).sum() >= top_p:
        return token_ids, scores, log_total
    return *_largest(logits, len(logits)), log_total


def _log_sum_exp(logits: np.ndarray) -> float:
    largest = float(logits.max())
    return largest + float(np.log(np.exp(logits - largest).sum(dtype=np.float64)))


def _largest(logits: Row, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``n`` largest, sorted; among equals the smaller token id comes first, as argmax has it."""
    token_ids = np.arange(len(logits))
    if n < len(logits):
        least = float(torch.topk(torch.from_numpy(logits), n).values[-1])
        above, equal = np.flatnonzero(logits > least), np.flatnonzero(logits == least)
        token_ids = np.sort(np.concatenate([above, equal[: n - len(above)]]))
    scores = logits[token_ids].astype(np.float64)
    order = np.argsort(-scores, kind="stable")
    return token_ids[order], scores[order]


def _kept(probabilities: np.ndarray, top_p: float, min_p: float) -> np.ndarray:
    """Mask of what top_p and min_p keep; at least one token. For top_p the probabilities descend."""
    kept: np.ndarray = probabilities >= min_p * probabilities.max()
    if top_p < 1:
        kept[int(np.searchsorted(np.cumsum(probabilities), top_p)) + 1 :] = False
    return kept
