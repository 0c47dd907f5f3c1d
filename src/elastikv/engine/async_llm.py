"""An ``LLM`` for asyncio: one worker thread computes, and coroutines ask that thread."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from elastikv import arguments
from elastikv.engine import forks
from elastikv.engine.events import Event
from elastikv.engine.llm import LLM, Pooling, Prompt
from elastikv.engine.outputs import Delta, GenerationOutput
from elastikv.engine.params import SamplingParams
from elastikv.engine.requests import Request
from elastikv.engine.stats import EngineStats, SessionInfo
from elastikv.errors import ElastikvError, EngineClosed

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Listener:
    """Who waits for a request's news: a queue of an event loop in another thread."""

    request: Request
    loop: asyncio.AbstractEventLoop
    news: asyncio.Queue[Delta | Exception]

    def tell(self) -> None:
        """Pass on what is new; the last item is a delta with an output, or the error."""
        if not self.request.deltas and self.request.error is None:
            return  # as thousands that wait have nothing to tell, step after step
        items: list[Delta | Exception] = list(self.request.deltas)
        self.request.deltas.clear()
        if self.request.error is not None:
            items.append(self.request.error)
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._put, items)

    def _put(self, items: list[Delta | Exception]) -> None:
        for item in items:
            self.news.put_nowait(item)


class AsyncLLM:
    """Many requests at once from asyncio. ``await start()`` before, ``await close()`` after.

    Its worker thread is one of those that use the ``llm``, which others may go on using.
    """

    def __init__(self, llm: LLM) -> None:
        arguments.instance("llm", llm, LLM, "an LLM")
        self.llm = llm
        self._scheduler = llm.scheduler
        self._commands: queue.Queue[Callable[[], None]] = queue.Queue()
        self._listeners: dict[int, _Listener] = {}
        self._thread: threading.Thread | None = None
        self._is_closing = False
        self._is_stopped = False
        self._lock = threading.Lock()

    async def start(self) -> None:
        """Start the worker thread; once."""
        if self._thread is not None:
            raise ElastikvError("this AsyncLLM was started already")
        self._thread = threading.Thread(target=self._work, name="elastikv-worker", daemon=True)
        self._thread.start()

    async def close(self, drain_seconds: float = 0.0) -> None:
        """Let running requests end for up to ``drain_seconds`` (see ``drain``), park sessions and stop the thread."""
        await self.drain(drain_seconds)
        if self._thread is None or self._is_stopped:
            return
        await asyncio.wrap_future(self._send(self._stop))
        await asyncio.to_thread(self._thread.join)

    async def drain(self, seconds: float) -> None:
        """Take no new requests and refuse those that wait (EngineClosed); running ones get ``seconds`` to end.

        Then those that have text end with it (GenerationCut), the others with EngineClosed. Idle sessions are
        parked meanwhile, so that there is little left to do at the end.
        """
        deadline = time.monotonic() + seconds
        self._is_closing = True
        if self._thread is None or self._is_stopped:
            return
        scheduler = self._scheduler
        with suppress(EngineClosed):  # the LLM was closed meanwhile: all has ended
            await self._call(scheduler.refuse_waiting)
            await self._call(scheduler.release_idle)
            while time.monotonic() < deadline and scheduler.has_work:
                await asyncio.sleep(0.02)
            await self._call(scheduler.cut_all)

    async def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> AsyncGenerator[Delta, None]:
        """News of one generation; the last delta carries the output. Closing the iterator ends it within a step.

        Raises QueueFull, EngineClosed, PromptTooLong, CacheFull or InvalidRequest before the first delta,
        GenerationCut later.
        """
        news: asyncio.Queue[Delta | Exception] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        params = SamplingParams() if params is None else params
        arguments.instance("params", params, SamplingParams, "SamplingParams")
        if params.form is not None:  # compiled here, so that those that are computed need not wait for it
            await asyncio.to_thread(self._scheduler.constraints.compile, params)
        submitted = self._send(lambda: self._submit(prompt, params, loop, news))
        try:
            await asyncio.wrap_future(submitted)
            while True:
                item = await news.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if item.output is not None:
                    return
        finally:
            # Also when cancelled before the answer to `submit` came: the worker knows it by then.
            with suppress(ElastikvError):  # stopped: all requests have ended
                self._send(lambda: self._abort(submitted))

    async def generate(self, prompt: Prompt, params: SamplingParams | None = None) -> GenerationOutput:
        """One whole generation; raises as ``stream``. Cancelling ends it."""
        output = None
        async for delta in self.stream(prompt, params):
            output = delta.output or output
        assert output is not None, "a stream ends with an output or an error"
        return output

    async def embed(
        self, token_ids: Sequence[int], *, pooling: Pooling = "mean", normalize: bool = True
    ) -> list[float]:
        """The embedding of one prompt, between two steps; see ``LLM.embed``."""
        work = self._send(lambda: self.llm.embed([list(token_ids)], pooling=pooling, normalize=normalize)[0].tolist())
        embedding: list[float] = await asyncio.wrap_future(work)
        return embedding

    # What it says about itself

    async def sessions(self) -> list[SessionInfo]:
        """Sessions in memory and on disk, and requests that wait."""
        return await self._call(self.llm.scheduler.sessions)

    async def stats(self) -> EngineStats:
        """Memory, sessions and tokens counted so far, between two steps."""
        return await self._call(self.llm.scheduler.stats)

    def events(self, since: int = 0) -> list[Event]:
        """Memory events after number ``since``; callable from any thread."""
        return self.llm.events.since(since)

    async def check(self) -> None:
        """Check every invariant of the memory, between two steps. Raises AssertionError."""
        await self._call(self.llm.memory.check)

    # Changing memory while it runs

    async def resize(self, n_cells: int) -> None:
        """Capacity of every session in memory. Raises InvalidRequest below what one uses, CacheFull."""
        await self._call(lambda: self.llm.memory.resize(n_cells))

    async def shrink(self) -> int:
        """Give back spare capacity; returns the bytes given back."""
        return await self._call(self.llm.shrink_to_fit)

    async def set_budget(self, budget: str | int | None) -> None:
        """Another limit, as LLM's ``kv_budget``. Raises InvalidRequest."""
        await self._call(lambda: self.llm.set_budget(budget))

    async def save_session(self, session_id: int, path: str | Path) -> int:
        """Write a session to a file; returns its tokens. Raises InvalidRequest, OSError."""
        return await self._call(lambda: self.llm.scheduler.store.save(session_id, path))

    async def restore_session(self, path: str | Path) -> int:
        """A new idle session from a file; returns its id. Raises SnapshotError, CacheFull, OSError."""
        return await self._call(lambda: self.llm.scheduler.store.load(path))

    async def erase_session(self, session_id: int) -> None:
        """Close an idle or parked session and give its memory back. Raises InvalidRequest for a running one."""
        await self._call(lambda: self.llm.scheduler.store.erase(session_id))

    # The worker thread

    def _work(self) -> None:
        while not self._is_stopped:
            self._run_commands()
            if self._scheduler.has_work:
                self._step()
            self._tell_listeners()
        while not self._commands.empty():  # sent before the stop, which lets no others in
            self._commands.get()()

    def _run_commands(self) -> None:
        """All that are there; with nothing to compute or tell, wait for one, or for an idle session's time."""
        scheduler = self._scheduler
        try:
            if not scheduler.has_work and not self._listeners:
                self._commands.get(timeout=scheduler.seconds_until_due())()
            while True:
                self._commands.get_nowait()()
        except queue.Empty:
            if not scheduler.has_work and not self._is_stopped:
                with suppress(EngineClosed), self.llm.turn():
                    scheduler.tend()

    def _step(self) -> None:
        try:
            self.llm.step()
        except Exception as error:  # a fault of one step must not end the service for all that follow
            log.exception("a step failed; the requests that were part of it end")
            with suppress(EngineClosed), self.llm.turn():
                self._scheduler.fail_running(error)

    def _tell_listeners(self) -> None:
        for listener in list(self._listeners.values()):
            is_over = listener.request.finished  # asked first: another thread may end it meanwhile
            listener.tell()
            if is_over:
                del self._listeners[listener.request.number]

    def _submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        loop: asyncio.AbstractEventLoop,
        news: asyncio.Queue[Delta | Exception],
    ) -> Request:
        if self._is_closing:
            raise EngineClosed
        request = self.llm.submit(prompt, params)
        self._listeners[request.number] = _Listener(request, loop, news)
        return request

    def _abort(self, submitted: Future[Request]) -> None:
        if submitted.done() and not submitted.cancelled() and submitted.exception() is None:
            self.llm.abort(submitted.result())

    def _stop(self) -> None:
        with suppress(EngineClosed), self.llm.turn():
            self._scheduler.close()
        with self._lock:
            self._is_stopped = True

    async def _call(self, work: Callable[[], T]) -> T:
        """Run ``work`` on the worker thread, between two steps."""

        def in_turn() -> T:
            with self.llm.turn():
                return work()

        return await asyncio.wrap_future(self._send(in_turn))

    def _send(self, work: Callable[[], T]) -> Future[T]:
        forks.require_threads()
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except Exception as error:  # carried to whoever asked, and raised there
                future.set_exception(error)

        with self._lock:
            if self._is_stopped:
                raise EngineClosed("this AsyncLLM has been closed")
            if self._thread is None:
                raise ElastikvError("this AsyncLLM is not running; await start() first")
            self._commands.put(run)
        return future
