"""One generation from its prompt to its last token. Knows text and tokens; no memory, no tensors."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from elastikv.engine.constraint import Constraint
from elastikv.engine.drafting import Drafter
from elastikv.engine.outputs import Delta, FinishReason, GenerationOutput, Progress, Timings, TokenLogprobs, TopLogprob
from elastikv.engine.params import SamplingParams
from elastikv.engine.reasoning import Thoughts
from elastikv.engine.sampling import Breakers, Sampler
from elastikv.engine.sessions.session import Session
from elastikv.engine.text import TextStream
from elastikv.errors import ElastikvError, GenerationCut, InvalidRequest
from elastikv.weights.tokenizer import Tokenizer


class Request:
    """A generation in the scheduler.

    ``token_ids`` is prompt and generated tokens, and only ever gets longer; whatever a preemption or
    an interruption loses can be computed again from it. News is appended to ``deltas``.
    """

    def __init__(
        self,
        number: int,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        tokenizer: Tokenizer,
        eos_token_ids: Sequence[int],
        session: Session,
        now: float,
        constraint: Constraint | None = None,
        breakers: Breakers | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        self.number = number
        self.params = params
        self.drafter = drafter
        self.session = session
        self.token_ids = list(prompt_ids)
        self.n_prompt = len(prompt_ids)
        self.n_news = 0  # tokens that the last step brought: the next one computes these
        self.cached_tokens = 0
        self.checkpoint_at: int | None = None
        self.caches_prompt = params.cache_prompt
        self.submitted = now
        self.deltas: deque[Delta] = deque()
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        self._tokenizer = tokenizer
        self._eos_token_ids = frozenset(eos_token_ids)
        self._sampler = Sampler(params, eos_token_ids, breakers)
        self._constraint = constraint
        self._thoughts = None if params.reasoning is None else Thoughts(params.reasoning, tokenizer)
        self._due: deque[int] = deque(self._thoughts.closing() if self._thoughts else ())
        self._text = TextStream(tokenizer.stream_decoder(params.skip_special_tokens), params.stops)
        self._logprobs: list[TokenLogprobs] | None = None if params.logprobs is None else []
        self._n_processed = 0
        self._started: float | None = None
        self._first_token: float | None = None

    @property
    def n_generated(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - self.n_prompt

    @property
    def is_running(self) -> bool:
        """Whether its session holds its cells; before, and after a preemption, it waits."""
        return self.session.state == "running"

    @property
    def finished(self) -> bool:
        """Whether it has ended, well or not."""
        return self.finish_reason is not None or self.error is not None

    def timings(self, now: float) -> Timings:
        """Those so far; ``now`` is the time of the scheduler's clock."""
        started = now if self._started is None else self._started
        first = now if self._first_token is None else self._first_token
        n_computed, drafter = self._n_processed - self.cached_tokens, self.drafter
        drafted = (drafter.n_drafted, drafter.n_accepted) if drafter else (0, 0)
        return Timings(n_computed, first - started, self.n_generated, now - first, *drafted, self.cached_tokens)

    def start(self, now: float, n_cached: int) -> None:
        """Note that the request is about to be computed, all but ``n_cached`` of its tokens."""
        if self._started is None:
            self._started = now
            self.cached_tokens = min(n_cached, self.n_prompt)
            self._tell_progress(self.cached_tokens, now)

    def note_computed(self, n_tokens: int, now: float) -> None:
        """Note that its first ``n_tokens`` tokens are computed; what a preemption has undone is not news."""
        if self._n_processed < self.n_prompt and n_tokens > self._n_processed:
            self._tell_progress(min(n_tokens, self.n_prompt), now)

    def _tell_progress(self, n_processed: int, now: float) -> None:
        self._n_processed = n_processed
        if self.params.return_progress:
            timings = self.timings(now)
            progress = Progress(self.n_prompt, self.cached_tokens, n_processed, timings.prompt_seconds)
            self.deltas.append(Delta(timings=timings, progress=progress))

    def accept(self, logits: np.ndarray, n_ctx: int, now: float) -> None:
        """Choose the next token from float32 ``[n_vocab]`` and say what it means, and what must follow it."""
        if self.params.max_tokens == 0:
            self._tell("", [], None, "length", now)
            return
        try:
            token_id = self._choose(logits)
            logprobs = None if self._logprobs is None else self._logprobs_of(token_id, logits)
            token_ids = [token_id, *self._following(token_id)]
        except InvalidRequest as error:  # a form that only now turns out too complex
            self.cut(error, now)
            return
        if self._first_token is None:
            self._first_token = now
        self._take(token_ids, logprobs, n_ctx, now)

    def _choose(self, logits: np.ndarray) -> int:
        if not self._due:
            return self._sampler.sample(logits, self.token_ids, self._allowed())
        self._sampler.skip()
        return self._due.popleft()

    def _allowed(self) -> np.ndarray | None:
        """What the form of the text allows. Thoughts have none, and may come before it."""
        thoughts, constraint = self._thoughts, self._constraint
        if constraint is None or (thoughts is not None and thoughts.is_open):
            return None
        allowed = constraint.allowed()
        if thoughts is not None and thoughts.may_start:
            allowed[thoughts.start_id] = True
        return allowed

    def _following(self, token_id: int) -> list[int]:
        """The tokens that must follow without a choice; with log probabilities each of them has its own step."""
        following: list[int] = []
        self._note(token_id)
        while self._due and self._logprobs is None:
            following.append(self._due.popleft())
            self._note(following[-1])
        return following

    def _note(self, token_id: int) -> None:
        if token_id in self._eos_token_ids:
            return
        if self._thoughts is not None and self._thoughts.takes(token_id):
            self._due.extend(self._thoughts.closing())
        elif self._constraint is not None:
            self._constraint.accept(token_id)
            if not self._due and self._logprobs is None:
                self._due.extend(self._constraint.forced())

    def _take(self, token_ids: Sequence[int], logprobs: TokenLogprobs | None, n_ctx: int, now: float) -> None:
        """Append tokens, up to the one that ends the generation, if one does."""
        text, finish_reason, n_before = "", None, len(self.token_ids)
        for token_id in token_ids:
            self.token_ids.append(token_id)
            is_end = token_id in self._eos_token_ids
            text += "" if is_end else self._text.push(token_id)
            finish_reason = self._finish_reason(is_end, n_ctx)
            if finish_reason:
                break
        if finish_reason is None and self._constraint is not None and self._constraint.is_over:
            finish_reason = "stop"
        if finish_reason:
            text += self._text.flush()
        self.n_news = len(self.token_ids) - n_before
        self._tell(text, self.token_ids[n_before:], logprobs, finish_reason, now)

    def _finish_reason(self, is_end: bool, n_ctx: int) -> FinishReason | None:
        if is_end or self._text.stopped:
            return "stop"
        if self.n_generated == self.params.max_tokens or len(self.token_ids) >= n_ctx:
            return "length"
        return None

    def abort(self, now: float) -> None:
        """The caller wants no more."""
        self._tell(self._text.flush(), [], None, "abort", now)

    def cut(self, cause: ElastikvError, now: float) -> None:
        """The budget, or a shutdown, wants no more. Without a single token there is nothing to carry but the cause."""
        rest = self._text.flush()
        if rest:
            self.deltas.append(Delta(text=rest))
        self.fail(GenerationCut(self.output(now), cause) if self.n_generated else cause)

    def fail(self, error: Exception) -> None:
        """End the request with an error, which whoever waits for it gets."""
        self.error = error

    def output(self, now: float) -> GenerationOutput:
        """Everything so far."""
        return GenerationOutput(
            text=self._text.text,
            token_ids=self.token_ids[self.n_prompt :],
            finish_reason=self.finish_reason,
            prompt_tokens=self.n_prompt,
            cached_tokens=self.cached_tokens,
            logprobs=self._logprobs,
            timings=self.timings(now),
            stop=self._text.stop,
            session_id=self.session.id,
        )

    def _tell(
        self,
        text: str,
        token_ids: list[int],
        logprobs: TokenLogprobs | None,
        finish_reason: FinishReason | None,
        now: float,
    ) -> None:
        output = replace(self.output(now), finish_reason=finish_reason) if finish_reason else None
        timings = output.timings if output else self.timings(now)
        found = [logprobs] if logprobs else None
        self.deltas.append(Delta(text, token_ids, found, finish_reason, output, timings, session=self.session.id))
        self.finish_reason = finish_reason  # last: another thread that sees it finished finds all its news

    def _logprobs_of(self, token_id: int, logits: np.ndarray) -> TokenLogprobs:
        assert self._logprobs is not None
        logprob, top = self._sampler.top_logprobs(logits, token_id)
        piece = self._tokenizer.piece
        tops = tuple(TopLogprob(other, piece(other), score) for other, score in top)
        self._logprobs.append(TokenLogprobs(token_id, piece(token_id), logprob, tops))
        return self._logprobs[-1]


def raise_if_failed(request: Request) -> None:
    """Raise what ended ``request``, if something did."""
    if isinstance(request.error, ElastikvError):
        # A fresh traceback every time: the same error may be raised to more than one waiter.
        raise request.error.with_traceback(None)
    if request.error is not None:
        raise request.error
