"""What routes share: the settings, the engine once it is loaded, and the counters."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from fastapi import Request

from elastikv.server.errors import unavailable
from elastikv.server.metrics import RequestMetrics
from elastikv.server.settings import ServerSettings

if TYPE_CHECKING:
    from elastikv.engine.async_llm import AsyncLLM

T = TypeVar("T")


class ServerState:
    """One server. ``engine`` is None while the model loads."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.engine: AsyncLLM | None = None
        self.metrics = RequestMetrics()
        self.started = int(time.time())

    def ready_engine(self) -> AsyncLLM:
        """The engine. Raises APIError (503) while the model loads."""
        if self.engine is None:
            raise unavailable("the model is still loading")
        return self.engine

    @property
    def model_name(self) -> str:
        """The alias, or what the model calls itself."""
        return self.settings.alias or self.ready_engine().llm.model.info.name


def server_state(request: Request) -> ServerState:
    """The dependency of routes that answer while the model loads."""
    state: ServerState = request.app.state.server
    return state


def ready_state(request: Request) -> ServerState:
    """The dependency of routes that need the engine."""
    state = server_state(request)
    state.ready_engine()
    return state


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
