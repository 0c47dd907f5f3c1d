"""Which requests are taken at all, and which may start now."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from elastikv.arguments import in_vocabulary
from elastikv.engine.params import SamplingParams
from elastikv.engine.requests import Request
from elastikv.engine.sessions import SessionStore
from elastikv.errors import CacheFull, InvalidRequest, PromptTooLong
from elastikv.memory import Budget, Cost


class Admission:
    """Compares what a request needs at least with what the model, n_ctx and the budget allow."""

    def __init__(self, n_vocab: int, n_ctx: int, cost: Cost, budget: Budget, sessions: SessionStore) -> None:
        self._n_vocab = n_vocab
        self._n_ctx = n_ctx
        self._cost = cost
        self._budget = budget
        self._sessions = sessions

    def check(self, token_ids: Sequence[int], params: SamplingParams) -> None:
        """Raise what makes a request impossible: InvalidRequest, PromptTooLong, CacheFull."""
        if not len(token_ids):
            raise InvalidRequest("the prompt is empty; give at least one token")
        in_vocabulary((*token_ids, *(params.logit_bias or ())), self._n_vocab)
        if len(token_ids) > self._n_ctx:
            raise PromptTooLong(len(token_ids), self._n_ctx)
        limit = self._budget.limit_bytes
        if limit is not None:
            n_bytes, most = self._cost.least_bytes(len(token_ids)), max(limit - self._budget.compute_bytes, 0)
            if n_bytes > most:
                raise CacheFull("kv-budget", asked=n_bytes, left=most, limit=limit)

    def fits_now(self, request: Request, running: Iterable[tuple[int, int]]) -> bool:
        """Whether its tokens have room once idle sessions make way; growth while generating is not foreseen.

        running: of each running request, how many tokens it has and for how many of them it has cells.
        The room for the others is as good as taken.
        """
        promised = sum(
            self._cost.least_bytes(n) - (self._cost.least_bytes(n_held) if n_held else 0) for n, n_held in running
        )
        n_bytes = self._cost.least_bytes(len(request.token_ids))
        return n_bytes + promised <= self._budget.left() + self._sessions.idle_bytes()
