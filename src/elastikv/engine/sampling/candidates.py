"""The tokens that a choice is made from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Candidates:
    """Tokens with their scores (logits, as far as they are worked on); a score of -inf is never drawn.

    token_ids: int64 ``[n]``; None: all tokens of the vocabulary, in their order, which needs no array.
    scores: ``[n]``, float32 for the model's own row, float64 once something has been left out. Nobody writes to them.
    is_sorted: the likeliest comes first; otherwise, and among equals, the smaller id comes first.
    """

    token_ids: np.ndarray | None
    scores: np.ndarray
    is_sorted: bool = False

    def kept(self, mask: np.ndarray) -> Candidates:
        """Those that ``mask``, bool ``[n]``, keeps."""
        places = np.flatnonzero(mask)
        return self._at(places, self.is_sorted)

    def first(self, n: int) -> Candidates:
        """The first ``n``."""
        return Candidates(None if self.token_ids is None else self.token_ids[:n], self.scores[:n], self.is_sorted)

    def largest(self, n: int) -> Candidates:
        """The ``n`` likeliest, sorted."""
        if self.is_sorted:
            return self.first(n)
        return self._at(_largest(self.scores, n), True)

    def places_of(self, token_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | slice]:
        """Where those of ``token_ids`` (each once) that are candidates stand, and which of ``token_ids`` they are."""
        if self.token_ids is None:
            return token_ids, slice(None)
        _, places, which = np.intersect1d(self.token_ids, token_ids, assume_unique=True, return_indices=True)
        return places, which

    def rescored(self, places: np.ndarray, scores: np.ndarray) -> Candidates:
        """The same with other scores at ``places``."""
        changed = self.scores.copy()
        changed[places] = scores
        if not self.is_sorted:
            return Candidates(self.token_ids, changed)
        return Candidates(self.token_ids, changed).largest(len(changed))

    def log_total(self) -> float:
        """What to subtract from a score to get the log probability."""
        return _log_sum_exp(self.scores)

    def top_logprobs(self, token_id: int, n_top: int) -> tuple[float, list[tuple[int, float]]]:
        """The log probability of ``token_id``, one of these, and the ``n_top`` most likely tokens with theirs."""
        log_total = self.log_total()
        places, _ = self.places_of(np.array([token_id]))
        top = _largest(self.scores, n_top) if n_top else ()
        found = [(self._token_id(place), float(self.scores[place]) - log_total) for place in top]
        return float(self.scores[places[0]]) - log_total, found

    def likeliest(self) -> int:
        """The token with the largest score."""
        return self._token_id(int(np.argmax(self.scores)))

    def draw(self, rng: np.random.Generator) -> int:
        """A token, with the probability that its score gives it."""
        weights = np.exp(self.scores.astype(np.float64) - self.scores.max())
        cumulative = np.cumsum(weights)
        place = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
        if place == len(cumulative):  # the product was rounded up to the sum
            place = int(np.flatnonzero(weights)[-1])
        return self._token_id(place)

    def _at(self, places: np.ndarray, is_sorted: bool) -> Candidates:
        token_ids = places if self.token_ids is None else self.token_ids[places]
        return Candidates(token_ids, self.scores[places].astype(np.float64), is_sorted)

    def _token_id(self, place: int) -> int:
        return int(place if self.token_ids is None else self.token_ids[place])


def _log_sum_exp(logits: np.ndarray) -> float:
    largest = float(logits.max())
    return largest + float(np.log(np.exp(logits - largest).sum(dtype=np.float64)))


def _largest(scores: np.ndarray, n: int) -> np.ndarray:
    """Places of the ``n`` largest, sorted; among equals the earlier place comes first, as argmax has it."""
    places = np.arange(len(scores))
    if n < len(scores):
        least = float(torch.topk(torch.from_numpy(scores), n).values[-1])
        above, equal = np.flatnonzero(scores > least), np.flatnonzero(scores == least)
        places = np.sort(np.concatenate([above, equal[: n - len(above)]]))
    return places[np.argsort(-scores[places], kind="stable")]
