"""Which requests are taken at all, and which may start now."""

from __future__ import annotations

from collections.abc import Sequence

from elastikv.arguments import in_vocabulary
from elastikv.engine.params import SamplingParams
from elastikv.engine.requests import Request
from elastikv.engine.sharing import SharedBudget
from elastikv.errors import CacheFull, InvalidRequest, PromptTooLong
from elastikv.memory import Cost


class Admission:
    """Compares what a request needs at least with what the model, n_ctx and the budget allow."""

    def __init__(self, n_vocab: int, n_ctx: int, cost: Cost, shared: SharedBudget) -> None:
        self._n_vocab = n_vocab
        self._n_ctx = n_ctx
        self._cost = cost
        self._shared = shared

    def check(self, token_ids: Sequence[int], params: SamplingParams) -> None:
        """Raise what makes a request impossible: InvalidRequest, PromptTooLong, CacheFull."""
        if not len(token_ids):
            raise InvalidRequest("the prompt is empty; give at least one token")
        in_vocabulary((*token_ids, *(params.logit_bias or ())), self._n_vocab)
        if len(token_ids) > self._n_ctx:
            raise PromptTooLong(len(token_ids), self._n_ctx)
        limit = self._shared.budget.limit_bytes
        if limit is not None:
            n_bytes = self._cost.least_bytes(len(token_ids))
            most = max(limit - self._shared.budget.compute_bytes, 0)
            if n_bytes > most:
                raise CacheFull("kv-budget", asked=n_bytes, left=most, limit=limit)

    def fits_now(self, request: Request) -> bool:
        """Whether its tokens have room beside those that run, once idle sessions make way; growth is not foreseen."""
        n_bytes = self._cost.least_bytes(len(request.token_ids)) + self._shared.promised_bytes()
        return n_bytes <= self._shared.budget.left() + self._shared.idle_bytes()
