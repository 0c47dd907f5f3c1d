"""The samplers of one generation, in the order that its caller wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from elastikv.engine.params import SamplingParams
from elastikv.engine.sampling import cuts
from elastikv.engine.sampling.breakers import Breakers
from elastikv.engine.sampling.candidates import Candidates
from elastikv.engine.sampling.penalties import dry, penalised

Row = np.ndarray
"""float32 ``[n_vocab]``"""

Step = Callable[[Candidates, Sequence[int]], Candidates]
"""What a sampler makes of the candidates, after the tokens so far."""

_KEEP_THE_LIKELIEST = ("top_n_sigma", "top_k", "top_p", "min_p")


class Sampler:
    """Chooses the tokens of one generation; holds its random generator, so draws are its own.

    breakers: what ``params.dry_sequence_breakers`` are among the model's tokens.
    """

    def __init__(
        self, params: SamplingParams, eos_token_ids: Sequence[int] = (), breakers: Breakers | None = None
    ) -> None:
        self._params = params
        self._breakers = breakers or Breakers()
        # numpy wants seeds >= 0; users of other engines also pass negative ones.
        self._rng = np.random.default_rng(None if params.seed is None else params.seed % 2**64)
        bias = dict(params.logit_bias or {})
        if params.ignore_eos:
            bias.update(dict.fromkeys(eos_token_ids, -np.inf))
        self._bias_ids = np.fromiter(bias.keys(), dtype=np.int64, count=len(bias))
        self._bias = np.fromiter(bias.values(), dtype=np.float32, count=len(bias))
        self._is_greedy = params.temperature == 0 and "temperature" in params.samplers
        self._steps = self._chain()
        self._left: Candidates | None = None

    def sample(self, logits: Row, context: Sequence[int], allowed: np.ndarray | None = None) -> int:
        """The next token after ``context`` (prompt and generated tokens). ``logits`` are left as they are.

        allowed: bool ``[n_vocab]``, the tokens to choose from; None: all.
        """
        self._left = candidates = self.candidates(logits, context, allowed)
        return candidates.likeliest() if self._is_greedy else candidates.draw(self._rng)

    def skip(self) -> None:
        """Note that the next token is chosen without it."""
        self._left = None

    def top_logprobs(self, logits: Row, token_id: int) -> tuple[float, list[tuple[int, float]]]:
        """The log probability of the token that was chosen, and of as many likely ones as ``params`` want.

        Of the model's own distribution, or (``post_sampling_probs``) of what was left to draw from.
        """
        n_top = self._params.logprobs or 0
        if not self._params.post_sampling_probs:
            return Candidates(None, logits).top_logprobs(token_id, n_top)
        if self._left is None or self._is_greedy:  # there was no other choice
            return 0.0, [(token_id, 0.0)][:n_top]
        logprob, top = self._left.top_logprobs(token_id, n_top)
        return logprob, [(other, score) for other, score in top if score > -np.inf]

    def candidates(self, logits: Row, context: Sequence[int], allowed: np.ndarray | None = None) -> Candidates:
        """What the samplers leave to draw from."""
        row = self._biased(logits)
        if allowed is not None:
            row = _masked(row, allowed)
            if row.max() == -np.inf:  # a bias bans all that is allowed: the text has come to its end
                row = _masked(logits, allowed)
        candidates = Candidates(None, row)
        for step in self._steps:
            candidates = step(candidates, context)
        return candidates

    def _biased(self, logits: Row) -> Row:
        if not len(self._bias_ids):
            return logits
        logits = logits.copy()
        logits[self._bias_ids] += self._bias
        return logits

    def _chain(self) -> list[Step]:
        """The samplers that do something. Greedily, those before the temperature, up to the last that matters."""
        names = [name for name in self._params.samplers if self._is_on(name)]
        if self._is_greedy:
            names = names[: names.index("temperature")]
            while names and names[-1] in _KEEP_THE_LIKELIEST:
                names.pop()
        return [self._step(name) for name in names]

    def _is_on(self, name: str) -> bool:
        params = self._params
        return {
            "penalties": params.repeat_last_n != 0
            and (params.repeat_penalty, params.presence_penalty, params.frequency_penalty) != (1, 0, 0),
            "dry": params.uses_dry,
            "top_n_sigma": params.top_n_sigma > 0,
            "top_k": params.top_k > 0,
            "typ_p": params.typical_p < 1,
            "top_p": params.top_p < 1,
            "min_p": params.min_p > 0,
            "xtc": params.xtc_probability > 0 and params.xtc_threshold <= 0.5,  # two tokens can't both have more
            "temperature": params.temperature != 1,
        }[name]

    def _step(self, name: str) -> Step:
        params = self._params
        steps: dict[str, Step] = {
            "penalties": lambda candidates, context: penalised(candidates, context, params),
            "dry": lambda candidates, context: dry(candidates, context, params, self._breakers),
            "top_n_sigma": lambda candidates, _: cuts.top_n_sigma(candidates, params.top_n_sigma),
            "top_k": lambda candidates, _: cuts.top_k(candidates, params.top_k),
            "typ_p": lambda candidates, _: cuts.typical(candidates, params.typical_p),
            "top_p": lambda candidates, _: cuts.top_p(candidates, params.top_p),
            "min_p": lambda candidates, _: cuts.min_p(candidates, params.min_p),
            "xtc": lambda candidates, _: cuts.xtc(candidates, params.xtc_probability, params.xtc_threshold, self._rng),
            "temperature": lambda candidates, _: cuts.temperature(candidates, params.temperature),
        }
        return steps[name]


def _masked(logits: Row, allowed: np.ndarray) -> Row:
    return np.where(allowed, logits, np.float32(-np.inf))
