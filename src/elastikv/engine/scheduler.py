"""Who computes when, and who gives way when memory is refused. Policy: no tensors, no cells."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import numpy as np

from elastikv.batch import Batch
from elastikv.engine.admission import Admission
from elastikv.engine.constraint import ConstraintCompiler
from elastikv.engine.events import EventLog
from elastikv.engine.options import SchedulerOptions
from elastikv.engine.params import SamplingParams
from elastikv.engine.policy import Chunk, plan_step
from elastikv.engine.requests import Request
from elastikv.engine.sampling import BreakersOfTokenizer
from elastikv.engine.sessions.store import SessionStore
from elastikv.engine.sharing import NONE_LEFT, SharedBudget
from elastikv.engine.speculation import Speculation
from elastikv.engine.stats import EngineStats, SessionInfo, Totals, session_infos
from elastikv.errors import CacheFull, ElastikvError, EngineClosed, QueueFull
from elastikv.runtimes.base import Runtime

T = TypeVar("T")


class Scheduler:
    """Runs requests on a runtime, step by step. Not thread-safe: see ``LLM.turn``.

    Requests run in the order of their arrival, at most ``options.n_parallel`` at once. When growth is
    refused, idle sessions leave memory first, then the youngest running request goes back to wait
    (its tokens are kept); the oldest always goes on.

    A step or an abort may be interrupted (Ctrl-C) at any line; the next one settles what was left. What two
    objects must agree about is assigned in one statement, which no signal comes between.
    """

    def __init__(
        self,
        runtime: Runtime,
        shared: SharedBudget,
        options: SchedulerOptions,
        events: EventLog,
        *,
        n_batch: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.options = options
        self.events = events
        self._runtime = runtime
        self._memory = runtime.memory
        self._shared = shared
        self._tokenizer = runtime.tokenizer
        self.eos_token_ids = tuple(sorted({*runtime.tokenizer.eos_token_ids, *runtime.model.info.eos_token_ids}))
        self._n_batch = n_batch
        self._n_ubatch = runtime.n_ubatch
        self._clock = clock
        self._requests: list[Request] = []  # in the order of their arrival, until they are retired
        self._n_requests = 0
        self._is_torn = False
        self.totals = Totals()
        self._seconds_per_request = 1.0

        info = runtime.model.info
        self.store = SessionStore(self._memory, runtime.cost, shared, options, events, info.fingerprint, clock)
        self.constraints = ConstraintCompiler(self._tokenizer, info.n_vocab, self.eos_token_ids)
        self._breakers = BreakersOfTokenizer(self._tokenizer)
        self._speculation = Speculation(self._memory, options)
        self._admission = Admission(info.n_vocab, self._memory.n_ctx, runtime.cost, shared)
        shared.join(self)

    # What callers do

    @property
    def has_work(self) -> bool:
        """Whether any request runs or waits."""
        return bool(self._requests)

    @property
    def has_place(self) -> bool:
        """Whether ``enqueue`` would find a place in the queue."""
        return len(self._waiting) < self.options.max_queue

    def check(self, token_ids: Sequence[int], params: SamplingParams) -> None:
        """Raise what makes a request impossible now and later: InvalidRequest, PromptTooLong, CacheFull."""
        if params.stops:
            self._tokenizer.require_backend()
        try:
            self._admission.check(token_ids, params)
        except CacheFull as refusal:
            self.events.add("refusal", n_bytes=refusal.asked)
            raise

    def new_request(self, token_ids: Sequence[int], params: SamplingParams) -> Request:
        """A request that is not queued yet, so that whoever is interrupted can ``abort`` it. Raises as ``check``."""
        self.check(token_ids, params)
        constraint = self.constraints.compile(params)
        breakers = self._breakers.find(params.dry_sequence_breakers) if params.uses_dry else None
        session, now = self.store.new(), self._clock()
        request = Request(
            self._n_requests,
            token_ids,
            params,
            self._tokenizer,
            self.eos_token_ids,
            session,
            now,
            constraint,
            breakers,
            self._speculation.drafter(),
        )
        self._n_requests += 1
        return request

    def enqueue(self, request: Request) -> None:
        """Let it be computed by the steps that follow; its news appear in ``request.deltas``. Raises QueueFull."""
        if not self.has_place:
            retry_after = self._seconds_per_request * len(self._waiting) / self.options.n_parallel
            raise QueueFull(len(self._waiting), max(retry_after, 1.0))
        request.submitted = self._clock()
        self._requests.append(request)

    def submit(self, token_ids: Sequence[int], params: SamplingParams) -> Request:
        """A new request in the queue. Raises as ``check``, and QueueFull."""
        request = self.new_request(token_ids, params)
        self.enqueue(request)
        return request

    def abort(self, request: Request) -> None:
        """End a request; its session stays for the next turn. One that has ended is left as it is."""
        with self._operation():
            if not request.finished:
                request.abort(self._clock())
            if request in self._requests:
                self._retire(request)

    def fail_running(self, error: Exception) -> None:
        """A step went wrong, and not for lack of memory: all that were part of it get ``error``."""
        with self._operation():
            for request in self._running:
                request.fail(error)
                self._retire(request)

    def step(self) -> bool:
        """Compute once for everybody who runs; False if nobody could: all wait for memory that others hold."""
        with self._operation():
            self.tend()
            self._admit()
            chunks, logits = self._decode()
            self._keep_checkpoints(chunks)
            self._sample(chunks, logits)
            self._speculation.settle()
            self._retire_finished()
        return bool(chunks)

    def make_room_for(self, work: Callable[[], T]) -> T:
        """Do ``work``; as long as it is refused, let idle sessions go and try again. Raises the last CacheFull."""
        with self._operation():
            return self._shared.make_room_for(work, self.store)

    def memory_changed(self) -> None:
        """The caller has given back memory or raised the budget: preempted requests may try again."""
        self._shared.memory_returned()

    def seconds_until_due(self) -> float | None:
        """When ``step`` has something to do for idle sessions, if no request comes; None: never."""
        return self.store.seconds_until_due()

    def tend(self) -> None:
        """Take back what idle sessions have held for too long; ``step`` does it too."""
        self.store.tend()

    def clear(self) -> None:
        """End all requests and remove all sessions from memory."""
        self._abort_all()
        with self._operation():
            for session in self.store.idle():
                self.store.drop(session)
            self._memory.clear()

    def refuse_waiting(self) -> None:
        """End the requests that wait and have no text yet (EngineClosed). A preempted one has, and may go on."""
        for request in [request for request in self._waiting if not request.n_generated]:
            self._end_early(request)

    def cut_all(self) -> None:
        """End all requests: what they have generated is theirs (GenerationCut); the others get EngineClosed."""
        for request in [*self._running, *self._waiting]:
            self._end_early(request)

    def close(self) -> None:
        """End all requests; idle sessions are parked if there is a place."""
        self._abort_all()
        self.release_idle()

    def release_idle(self) -> None:
        """The memory of idle sessions is given back; they are parked if there is a place."""
        for session in self.store.idle():
            self.store.park(session)

    def _abort_all(self) -> None:
        for request in list(self._requests):
            self.abort(request)

    def _end_early(self, request: Request) -> None:
        with self._operation():
            request.cut(EngineClosed(), self._clock())
            self._retire(request)

    @property
    def _running(self) -> list[Request]:
        """They stand before those that wait: requests start in order, and the youngest gives way first.

        So a queue of thousands is not looked through several times a step.
        """
        started = itertools.takewhile(lambda request: request.is_running or request.finished, self._requests)
        return [request for request in started if not request.finished]

    @property
    def _waiting(self) -> list[Request]:
        return [request for request in self._requests if not request.is_running and not request.finished]

    @contextmanager
    def _operation(self) -> Iterator[None]:
        """Whatever the last operation was interrupted in is settled before this one."""
        if self._is_torn:
            self._memory.rollback()
            self._speculation.settle()
            self._retire_finished()
        self._is_torn = True
        yield
        self._is_torn = False

    # The parts of a step

    def _admit(self) -> None:
        while len(self._running) < self.options.n_parallel and (waiting := self._waiting):
            if not self._may_start(waiting[0]):
                return
            n_cached = self.store.acquire(waiting[0])
            waiting[0].start(self._clock(), n_cached)
            self.totals.tokens_cached += n_cached

    def _may_start(self, request: Request) -> bool:
        """Nobody starts only to be preempted again, or to compute what another is just computing."""
        running = self._running
        if not running and not self._shared.more_may_come(self.store):
            return True
        if self._shared.is_admission_held or self.store.awaits_prompt(request, running):
            return False
        return self._admission.fits_now(request)

    def _decode(self) -> tuple[list[Chunk], np.ndarray | None]:
        """What could be computed, and float32 logits ``[n, n_vocab]`` of the chunks that complete their request.

        Each of those has a row, and one more for every token of its draft.
        """
        concessions = itertools.chain(self._speculation.concessions(), self._shared.concessions(self.store))
        while chunks := self._plan():
            try:
                return chunks, self._runtime.decode(Batch(chunk.entry for chunk in chunks)).numpy()
            except CacheFull as refusal:
                self.events.add("refusal", n_bytes=refusal.asked)
                if next(concessions, NONE_LEFT) is NONE_LEFT:
                    self._give_way(refusal)
        return [], None

    def _plan(self) -> list[Chunk]:
        for request in self._running:
            if self._n_held(request) == len(request.token_ids):  # interrupted before its token was chosen
                self.store.rewind(request)
        chunks = plan_step(self._running, self._n_held, n_batch=self._n_batch, n_ubatch=self._n_ubatch)
        return self._speculation.extend(chunks, self._n_batch)

    def _give_way(self, refusal: CacheFull) -> None:
        """The youngest goes back to wait. One that is alone and refused has all there is: it ends early."""
        *others, youngest = self._running
        if others or self._shared.ask_for_more(self.store):
            self._preempt(youngest)
        else:
            youngest.cut(refusal, self._clock())
            self._retire(youngest)

    def _preempt(self, request: Request) -> None:
        """Its cells go; its tokens are computed again, or restored, once another request has ended."""
        self.store.preempt(request)
        self._shared.is_admission_held = True

    def _keep_checkpoints(self, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            if chunk.stop == chunk.request.checkpoint_at:
                self._memory.checkpoint(chunk.request.session.seq_id)

    def _sample(self, chunks: Sequence[Chunk], logits: np.ndarray | None) -> None:
        now = self._clock()
        complete = [chunk for chunk in chunks if chunk.completes]
        for chunk in chunks:
            chunk.request.note_computed(chunk.stop, now)
        self._count(chunks)
        if logits is not None:
            ends = np.cumsum([1 + len(chunk.draft) for chunk in complete])
            for chunk, rows in zip(complete, np.split(logits, ends)[:-1], strict=True):
                self._sample_for(chunk, rows, now)

    def _count(self, chunks: Sequence[Chunk]) -> None:
        totals = self.totals
        totals.n_steps += bool(chunks)
        totals.n_replies += len(chunks)
        totals.n_drafts += sum(bool(chunk.draft) for chunk in chunks)
        totals.longest = max([totals.longest, *(chunk.stop for chunk in chunks)])
        totals.tokens_prompt += sum(max(min(chunk.stop, chunk.request.n_prompt) - chunk.start, 0) for chunk in chunks)

    def _sample_for(self, chunk: Chunk, rows: np.ndarray, now: float) -> None:
        for row in self._speculation.counting(chunk, rows):
            try:
                chunk.request.accept(row, self._memory.n_ctx, now)
            except BaseException:  # its text may lack a piece; it must not go on as if nothing had been
                chunk.request.fail(ElastikvError("this generation was interrupted; start it again"))
                raise
            self.totals.tokens_generated += chunk.request.n_news

    def _retire_finished(self) -> None:
        for request in [request for request in self._requests if request.finished]:
            seconds = self._clock() - request.submitted
            self._seconds_per_request += 0.1 * (seconds - self._seconds_per_request)
            self._retire(request)

    def _retire(self, request: Request) -> None:
        """Its session becomes idle: the cells stay until their memory is wanted. Interrupted, it is done again."""
        self.store.release(request)
        self._shared.is_admission_held = False
        self._requests.remove(request)
        self.totals.count(request.timings(self._clock()))

    def _n_held(self, request: Request) -> int:
        """How many of its tokens have cells."""
        return self.store.n_held(request.session)

    # What it says about itself

    def sessions(self) -> list[SessionInfo]:
        """Sessions in memory and on disk, and requests that wait."""
        waiting = [request.session for request in self._waiting]
        return session_infos([*self.store, *waiting], self._memory.stats())

    def stats(self) -> EngineStats:
        """Memory, sessions and tokens counted so far."""
        counts = self.events.counts
        return EngineStats(
            memory=self._memory.stats(),
            n_running=len(self._running),
            n_waiting=len(self._waiting),
            n_idle=len(self.store.idle()),
            n_parked=len(self.store.parked()),
            n_refusals=counts["refusal"],
            n_preemptions=counts["preempt"],
            n_releases=counts["release"],
            n_parks=counts["park"],
            n_restores=counts["restore"],
            totals=replace(self.totals),
        )
