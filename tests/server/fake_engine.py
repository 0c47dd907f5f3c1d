"""A stand-in for ``AsyncLLM`` whose replies are known: it says the prompt again, a byte a token.

Tests of the protocols need no model; ``step`` seconds between tokens, or ``hold`` to stop it midway,
let them look at a generation that runs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

from elastikv.engine.events import Event
from elastikv.engine.outputs import Delta, FinishReason, GenerationOutput, Timings, TokenLogprobs, TopLogprob
from elastikv.engine.params import SamplingParams
from elastikv.engine.stats import Totals
from elastikv.errors import CacheFull, GenerationCut, InvalidRequest, PromptTooLong, QueueFull, SnapshotError
from elastikv.memory.base import MemoryStats, SequenceStats
from elastikv.models.base import ModelInfo

N_VOCAB = 257
BYTES_PER_CELL = 1024


class FakeTokenizer:
    """A byte is a token."""

    has_chat_template = True
    chat_template = "{{ messages }}"
    response_template = None

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        return list(text.encode())

    def token_id(self, token: str) -> int | None:
        return None

    def decode(self, token_ids: Sequence[int], skip_special: bool = True) -> str:
        return bytes(token_id for token_id in token_ids if token_id < 256).decode(errors="replace")

    def render_chat(self, messages: Sequence[dict[str, str]], **options: object) -> str:
        if options:
            raise InvalidRequest(f"the template takes no {', '.join(options)}")
        return "".join(f"<{message['role']}>{message['content']}" for message in messages)


@dataclass
class FakeSession:
    id: int
    state: str
    used_cells: int
    capacity_cells: int
    committed_bytes: int
    n_prompt: int = 0
    n_generated: int = 0
    last_used: float = 0.0


class FakeAsyncLLM:
    """Serves ``n_parallel`` replies at once and lets ``max_queue`` wait.

    A prompt that starts with ``cut!`` is cut by the budget after three tokens; one with ``full!`` never fits;
    one with ``bug!`` meets a bug before the first token.
    """

    def __init__(self, *, n_ctx: int = 512, n_parallel: int = 4, max_queue: int = 64, step: float = 0.0) -> None:
        info = ModelInfo("fake", "fake-model", 1, N_VOCAB, 2048, (256,), 1000, "0123456789abcdef")
        self.llm = SimpleNamespace(
            tokenizer=FakeTokenizer(),
            path="models/fake.gguf",
            model=SimpleNamespace(info=info),
            memory=SimpleNamespace(n_ctx=n_ctx),
            scheduler=SimpleNamespace(options=SimpleNamespace(n_parallel=n_parallel), eos_token_ids=(256,)),
            n_ctx=n_ctx,
            close=lambda: None,
            budget=SimpleNamespace(limit_bytes=1 << 20, kv_bytes=0),
            static_bytes=lambda: n_ctx * BYTES_PER_CELL,
            cost=SimpleNamespace(n_bytes=lambda n_cells: n_cells * BYTES_PER_CELL),
        )
        self.step = step
        self.max_queue = max_queue
        self.hold: asyncio.Event | None = None
        self.started = False
        self.closed = False
        self.n_generated = 0
        self.aborted: list[str] = []
        self.finished: list[str] = []
        self.requests: list[SamplingParams] = []
        self.calls: list[tuple[object, ...]] = []
        self._slots = asyncio.Semaphore(n_parallel)
        self._n_waiting = 0
        self._sessions: dict[int, FakeSession] = {}
        self._files: dict[str, FakeSession] = {}
        self._events: list[Event] = []

    async def start(self) -> None:
        self.started = True

    async def drain(self, seconds: float) -> None:
        return

    async def close(self, drain_seconds: float = 0.0) -> None:
        self.closed = True

    async def stream(self, prompt: list[int], params: SamplingParams) -> AsyncIterator[Delta]:
        n_ctx = self.llm.n_ctx
        text = self.llm.tokenizer.decode(prompt)
        self.requests.append(params)
        if len(prompt) >= n_ctx:
            raise PromptTooLong(len(prompt), n_ctx)
        if text.startswith("full!"):
            raise CacheFull("kv-budget", asked=4096, left=1024, limit=2048)
        if text.startswith("bug!"):
            raise ZeroDivisionError("a bug")
        if self._slots.locked() and self._n_waiting >= self.max_queue:
            raise QueueFull(self._n_waiting, retry_after=1.5)
        self._n_waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._n_waiting -= 1
        done = False
        session = self._open_session(len(prompt))
        try:
            async for delta in self._reply(prompt, params, session):
                yield delta
            done = True
        finally:
            self._slots.release()
            session.state = "idle"
            (self.finished if done else self.aborted).append(text)

    async def _reply(self, prompt: list[int], params: SamplingParams, session: FakeSession) -> AsyncIterator[Delta]:
        reply = list(prompt)
        reason: FinishReason = "stop"
        limit = min(params.max_tokens or len(reply), self.llm.n_ctx - len(prompt))
        if limit < len(reply):
            reply, reason = reply[:limit], "length"
        is_cut = self.llm.tokenizer.decode(prompt).startswith("cut!")
        pending = b""
        text = ""
        for n, token_id in enumerate(reply, 1):
            await asyncio.sleep(self.step)
            if self.hold is not None:
                await self.hold.wait()
            self.n_generated += 1
            session.used_cells += 1
            if is_cut and n == 4:
                cause = CacheFull("kv-budget", asked=4096, left=0, limit=4096)
                raise GenerationCut(self._output(prompt, reply[:3], text, None, params), cause)
            pending += bytes([token_id])
            try:
                news, pending = pending.decode(), b""
            except UnicodeDecodeError:
                news = ""
            text += news
            last = n == len(reply)
            output = self._output(prompt, reply[:n], text, reason, params) if last else None
            logprobs = self._logprobs([token_id], params)
            timings = Timings(len(prompt), 0.25, n, 0.25 * n)
            yield Delta(news, [token_id], logprobs, reason if last else None, output, timings, session=session.id)

    def _output(
        self, prompt: list[int], reply: list[int], text: str, reason: FinishReason | None, params: SamplingParams
    ) -> GenerationOutput:
        cached = len(prompt) // 2
        timings = Timings(len(prompt) - cached, 0.25, len(reply), 0.5, cached_n=cached)
        return GenerationOutput(text, reply, reason, len(prompt), cached, self._logprobs(reply, params), timings)

    def _logprobs(self, token_ids: list[int], params: SamplingParams) -> list[TokenLogprobs] | None:
        if params.logprobs is None:
            return None
        decode = self.llm.tokenizer.decode
        unlikely = [TopLogprob(97 + i, decode([97 + i]), float("-inf")) for i in range(params.logprobs)]
        return [TokenLogprobs(token_id, decode([token_id]), -0.5, tuple(unlikely)) for token_id in token_ids]

    def _open_session(self, n_prompt: int) -> FakeSession:
        session = FakeSession(len(self._sessions), "running", n_prompt, 256, 256 * BYTES_PER_CELL, n_prompt)
        self._sessions[session.id] = session
        self._events.append(
            Event(len(self._events) + 1, time.monotonic(), "resize", session.id, 256, session.committed_bytes)
        )
        return session

    async def embed(self, token_ids: list[int], *, pooling: str, normalize: bool) -> list[float]:
        self.calls.append(("embed", pooling, normalize))
        return [0.6, 0.8] if normalize else [3.0, 4.0]

    async def sessions(self) -> list[FakeSession]:
        return list(self._sessions.values())

    async def stats(self) -> SimpleNamespace:
        sessions = self._sessions.values()
        capacity = sum(session.capacity_cells for session in sessions)
        memory = MemoryStats(
            capacity_cells=capacity,
            used_cells=sum(session.used_cells for session in sessions),
            committed_bytes=capacity * BYTES_PER_CELL,
            reserved_bytes=len(sessions) * self.llm.static_bytes(),
            peak_committed_bytes=capacity * BYTES_PER_CELL,
            compute_bytes=4096,
            budget_bytes=1 << 20,
            n_resizes=len(self._events),
            resize_seconds=0.125,
            sequences=tuple(
                SequenceStats(s.id, s.used_cells, s.capacity_cells, s.committed_bytes, self.llm.static_bytes())
                for s in sessions
            ),
        )
        n_running = sum(session.state == "running" for session in sessions)
        return SimpleNamespace(
            memory=memory,
            n_refusals=1,
            n_preemptions=2,
            n_parks=3,
            n_restores=4,
            n_running=n_running,
            n_waiting=self._n_waiting,
            n_idle=len(sessions) - n_running,
            n_parked=0,
            n_releases=0,
            totals=Totals(
                tokens_prompt=6,
                prompt_seconds=2.0,
                tokens_generated=self.n_generated,
                generated_seconds=0.5,
                n_steps=4,
                n_replies=6,
                longest=9,
            ),
        )

    def events(self, since: int) -> list[Event]:
        return [event for event in self._events if event.number > since]

    async def check(self) -> None:
        assert not self.calls, "it was touched"

    async def resize(self, n_cells: int) -> None:
        if n_cells > self.llm.n_ctx:
            raise CacheFull("n_ctx", asked=n_cells, left=self.llm.n_ctx, limit=self.llm.n_ctx)
        self.calls.append(("resize", n_cells))

    async def shrink(self) -> int:
        self.calls.append(("shrink",))
        return 12345

    async def set_budget(self, text: str) -> None:
        if not text.endswith("GiB"):
            raise InvalidRequest(f"{text!r} is not a size")
        self.calls.append(("budget", text))

    async def save_session(self, session_id: int, path: object) -> int:
        session = self._session(session_id)
        with open(str(path), "w") as file:
            file.write("saved")
        self._files[str(path)] = session
        return session.used_cells

    async def restore_session(self, path: object) -> int:
        if str(path) not in self._files:
            raise SnapshotError(f"{path} is not a saved session")
        saved = self._files[str(path)]
        session = FakeSession(len(self._sessions), "idle", saved.used_cells, 256, 256 * BYTES_PER_CELL)
        self._sessions[session.id] = session
        return session.id

    async def erase_session(self, session_id: int) -> None:
        self._session(session_id)
        del self._sessions[session_id]

    def _session(self, session_id: int) -> FakeSession:
        if session_id not in self._sessions:
            raise InvalidRequest(f"there is no session {session_id}")
        return self._sessions[session_id]
