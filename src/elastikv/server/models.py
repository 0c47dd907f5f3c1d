"""The models of a server: loaded when they are needed, put away when they are not or when another needs the room."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal, TypeVar

import torch

from elastikv.errors import ElastikvError, ModelError, format_bytes
from elastikv.memory import Budget
from elastikv.memory.machine import MachineMemory, read_machine_memory
from elastikv.server.errors import APIError, unavailable

if TYPE_CHECKING:
    from elastikv.engine.async_llm import AsyncLLM
    from elastikv.engine.sharing import SharedBudget

log = logging.getLogger(__name__)

T = TypeVar("T")

LoadEngine = Callable[[], "AsyncLLM"]
Status = Literal["unloaded", "loading", "loaded"]


class ServedModel:
    """One model of a server. ``engine`` is None while it is not loaded.

    load: makes the engine, in a thread. name: None for what the model calls itself, known once it was loaded.
    weight_bytes: of its files; 0 where these are not here yet.
    """

    def __init__(self, load: LoadEngine, name: str | None = None, weight_bytes: int = 0) -> None:
        self.load = load
        self.name = name
        self.weight_bytes = weight_bytes
        self.engine: AsyncLLM | None = None
        self.loading: asyncio.Task[None] | None = None
        self.n_requests = 0  # that use it, or wait for it
        self.last_used = time.monotonic()

    @property
    def status(self) -> Status:
        """In llama-server's words."""
        return "loaded" if self.engine is not None else "loading" if self.loading is not None else "unloaded"

    def ready_line(self) -> str:
        """For the log: what is served from now on, and within which bounds."""
        llm = self.ready_engine().llm
        limit = llm.budget.limit_bytes
        return (
            f"ready: {self.name} ({llm.model.info.architecture}), -c {llm.n_ctx}, "
            f"budget {'none' if limit is None else format_bytes(limit)}, "
            f"{llm.scheduler.options.n_parallel} replies at once, {torch.get_num_threads()} threads, "
            f"elastikv {version('elastikv')}"
        )

    def ready_engine(self) -> AsyncLLM:
        """The engine. Raises APIError (503) while it is not loaded."""
        if self.engine is None:
            raise unavailable(f"the model{f' {self.name}' if self.name else ''} is {self._why_not_ready()}")
        return self.engine

    def _why_not_ready(self) -> str:
        return "still loading" if self.loading is not None else "not loaded; a request that uses it loads it"


class Models:
    """All models of a server, of which the first is used where a request names none.

    shared: the budget of all, where there are several. load: at the ``"start"``, one after the other, or at their first
    ``"use"``. idle_seconds: unused for so long, a model is put away (None: never). most: so many are loaded at once
    (None: as many as the machine's memory holds). A model that is in use is never put away.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        shared: SharedBudget | None = None,
        *,
        load: Literal["start", "use"] = "start",
        idle_seconds: float | None = None,
        most: int | None = None,
        machine: Callable[[], MachineMemory] = read_machine_memory,
    ) -> None:
        self.all = tuple(models)
        self.is_open = False
        """Whether those that are loaded at the start are."""
        self.is_loading = False
        """Whether a thread makes an engine."""
        self._shared = shared
        self._loads_at_start = load == "start"
        self._idle_seconds = idle_seconds
        self._most = len(self.all) if most is None else most
        self._machine = machine
        self._lock = threading.Lock()  # of `engine` and `n_requests` of each
        self._one_at_a_time = asyncio.Lock()  # who loads, or puts away
        self._queue_for_room = asyncio.Lock()
        self._something_ended = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closing = False
        if shared is not None:
            shared.unload = self._begin_to_unload

    @property
    def loaded(self) -> list[ServedModel]:
        """Those that have an engine now."""
        return [model for model in self.all if model.engine is not None]

    def find(self, name: str | None) -> ServedModel:
        """The model that a request names; the only one answers to every name. Raises APIError (404)."""
        if name is None or len(self.all) == 1:
            return self.all[0]
        for model in self.all:
            if model.name == name:
                return model
        names = ", ".join(str(model.name) for model in self.all)
        raise APIError(404, f"no model is called {name!r}; there are {names}", param="model", code="model_not_found")

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[ServedModel]:
        """The model, loaded and not put away meanwhile. Waits until it is; raises APIError and what loading raises."""
        model = self.find(name)
        async with self._queue_for_room:  # or one that waits until others are unused might wait for ever
            pass
        with self._lock:
            model.n_requests += 1
        try:
            while model.engine is None:
                await self._wait_for(model)
            yield model
        finally:
            with self._lock:
                model.n_requests -= 1
            model.last_used = time.monotonic()
            self._something_ended.set()

    # A server's life

    async def open(self) -> None:
        """Load those that are to be loaded at the start, and from then on watch for unused ones."""
        self._loop = asyncio.get_running_loop()
        if self._idle_seconds is not None:
            self._start(self._watch(self._idle_seconds))
        for model in self.all if self._loads_at_start else ():
            if model is self.all[0] or self._fits(model):
                await self.load(model)
        self.is_open = True

    async def drain(self, seconds: float) -> None:
        """Load nothing more, and refuse what waits for it; see ``AsyncLLM.drain`` for what runs."""
        self._stop_loading()
        await asyncio.gather(*(model.ready_engine().drain(seconds) for model in self.loaded))

    async def close(self) -> None:
        """After ``drain``, or instead of it."""
        self._stop_loading()
        for model in self.loaded:
            await model.ready_engine().close()

    def _stop_loading(self) -> None:
        self._is_closing = True
        for task in self._tasks:
            task.cancel()

    # Loading

    def load(self, model: ServedModel) -> asyncio.Task[None]:
        """Begin to load a model, unless that goes on or is done already."""
        if model.loading is None:
            model.loading = self._start(self._load(model))
        return model.loading

    async def _wait_for(self, model: ServedModel) -> None:
        if self._is_closing:
            raise unavailable("the server is shutting down")
        loading = self.load(model)
        log.info("a request waits until %s is loaded", model.name or "the model")
        try:
            await asyncio.shield(loading)
        except asyncio.CancelledError:
            if loading.cancelled():
                raise unavailable("the server is shutting down") from None
            raise

    async def _load(self, model: ServedModel) -> None:
        try:
            async with self._one_at_a_time:
                if model.engine is not None:
                    return
                await self._make_room(model)
                engine = await in_daemon_thread(partial(self._make_engine, model))
                await engine.start()
                info = engine.llm.model.info
                model.name, model.weight_bytes = model.name or info.name, info.weight_bytes
                model.engine, model.last_used = engine, time.monotonic()
            log.info("%s", model.ready_line())
        except Exception as error:
            if self.is_open:  # at the start the owner of the process is told
                log.error("%s could not be loaded: %s", model.name, error)
            raise
        finally:
            model.loading = None

    def _make_engine(self, model: ServedModel) -> AsyncLLM:
        self.is_loading = True
        try:
            return model.load()
        finally:
            self.is_loading = False

    async def _make_room(self, model: ServedModel) -> None:
        """Put away what nobody uses; if that is not enough, wait until more is unused. Raises ModelError."""
        total = self._machine().total_bytes
        if model.weight_bytes > total:
            raise ModelError(
                f"{model.name} has {format_bytes(model.weight_bytes)} of weights, and this machine "
                f"{format_bytes(total)} of memory; use a smaller quantisation"
            )
        async with self._queue_for_room:
            while self.loaded and not self._fits(model):
                unused = self._longest_unused()
                if unused is not None:
                    await self._put_away(unused, f"{model.name} needs the room")
                    continue
                log.info("%s waits for room: %s", model.name, ", ".join(f"{m.name} is used" for m in self.loaded))
                self._something_ended.clear()
                await self._something_ended.wait()

    def _fits(self, model: ServedModel) -> bool:
        return len(self.loaded) < self._most and model.weight_bytes <= Budget(machine=self._machine).left()

    # Putting away

    async def unload(self, model: ServedModel, why: str) -> bool:
        """Close a model and give its memory back, weights included; idle sessions are parked if there is a place.

        False if it is not loaded, or in use.
        """
        async with self._one_at_a_time:
            return await self._put_away(model, why)

    async def _put_away(self, model: ServedModel, why: str) -> bool:
        with self._lock:
            if model.engine is None or model.n_requests:
                return False
            engine, model.engine = model.engine, None
        await engine.close()
        await asyncio.to_thread(engine.llm.close)
        del engine
        await asyncio.to_thread(gc.collect)  # an engine refers to itself, and its weights are large
        log.info("%s is unloaded: %s", model.name, why)
        return True

    def _longest_unused(self) -> ServedModel | None:
        unused = [model for model in self.loaded if not model.n_requests]
        return min(unused, key=lambda model: model.last_used, default=None)

    def _begin_to_unload(self) -> bool:
        """``SharedBudget.unload``: from the thread of a model that is out of memory."""
        with self._lock:
            model = self._longest_unused()
        if model is None or self._is_closing:
            return False
        self._loop.call_soon_threadsafe(lambda: self._start(self._give_back(model)))
        return True

    async def _give_back(self, model: ServedModel) -> None:
        assert self._shared is not None
        try:
            await self.unload(model, "another needs its memory")
        finally:
            self._shared.unload_ended()

    async def _watch(self, seconds: float) -> None:
        while True:
            now = time.monotonic()
            for model in self.loaded:
                if not model.n_requests and now - model.last_used >= seconds:
                    await self.unload(model, f"nobody has used it for {seconds:g} s")
            await asyncio.sleep(min(seconds / 4, 1.0))

    def _start(self, work: object) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ElastikvError):  # those are told to whoever waits
            log.error("a model could not be loaded or put away", exc_info=error)


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """Run ``work`` beside the event loop, in a thread that does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = work()
        except BaseException as caught:  # carried to the awaiting task, which raises it
            error = caught
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="load-model", daemon=True).start()
    return await future
