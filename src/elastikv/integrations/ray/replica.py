"""One server of the cluster: the app of ``elastikv serve``, without its listener."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

from ray import serve
from starlette.types import ASGIApp, Message, Receive
from typing_extensions import override

from elastikv.cli.serve import models_from_args
from elastikv.engine.async_llm import AsyncLLM
from elastikv.engine.llm import LLM, Prompt
from elastikv.engine.outputs import Delta
from elastikv.engine.params import SamplingParams
from elastikv.engine.stats import EngineStats, SessionInfo
from elastikv.integrations.ray.arguments import Plan
from elastikv.integrations.ray.prefixes import HeldMarks
from elastikv.integrations.ray.request import Forwarded
from elastikv.integrations.ray.scaling import Need, working_set_bytes
from elastikv.server import create_app

logger = logging.getLogger(__name__)

_marks: ContextVar[tuple[int, ...]] = ContextVar("marks of the request that is being answered", default=())


class NotingLLM(AsyncLLM):
    """Notes which session holds the text of which request."""

    def __init__(self, llm: LLM, held: HeldMarks) -> None:
        super().__init__(llm)
        self._held = held

    @override
    async def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> AsyncGenerator[Delta, None]:
        session = None
        async with aclosing(super().stream(prompt, params)) as deltas:
            async for delta in deltas:
                if delta.session not in (None, session):
                    session = delta.session
                    self._held.add((id(self), session), _marks.get())
                yield delta


class _Look(NamedTuple):
    engine: AsyncLLM
    stats: EngineStats
    sessions: list[SessionInfo]


class Replica:
    """A deployment of Ray Serve. Ready when its model is; raises what keeps the model from loading."""

    async def __init__(self, plan: Plan) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        self._plan = plan
        self._name = serve.get_replica_context().replica_id.unique_id.encode()
        self._held = HeldMarks()
        self._n_refusals = 0
        failures: list[BaseException] = []
        self._models = models_from_args(plan.flags, partial(NotingLLM, held=self._held))
        self._app = create_app(plan.settings, self._models, failures.append)
        self._lifespan = self._app.router.lifespan_context(self._app)
        await self._lifespan.__aenter__()
        while not self._models.is_open:
            if failures:
                raise failures[0]
            await asyncio.sleep(0.02)

    async def answer(self, request: Forwarded) -> AsyncIterator[list[Message]]:
        """See ``answers``; a header says which replica it was."""
        _marks.set(request.held_as)
        async with aclosing(answers(self._app, request)) as batches:
            async for batch in batches:
                for message in batch:
                    if message["type"] == "http.response.start":
                        message["headers"] = [*message.get("headers", ()), (b"x-replica", self._name)]
                yield batch

    async def record_routing_stats(self) -> dict[str, Any]:
        """For routers: what it holds, and how much it has to do."""
        looks = await self._look()
        self._held.keep({(id(look.engine), session.id) for look in looks for session in look.sessions})
        n_requests = sum(look.stats.n_running + look.stats.n_waiting for look in looks)
        return {"marks": self._held.report(), "n_requests": n_requests, "used": round(self._used(looks), 3)}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For the policy; see ``scaling.Need``."""
        looks = await self._look()
        n_all = sum(look.stats.n_refusals for look in looks)
        n_refusals, self._n_refusals = max(n_all - self._n_refusals, 0), n_all
        n_running, n_waiting = sum(look.stats.n_running for look in looks), sum(look.stats.n_waiting for look in looks)
        return asdict(Need(self._used(looks), n_running, n_waiting, n_refusals))

    async def check_health(self) -> None:
        """Raises EngineClosed when a model can compute no more; Ray replaces the replica then."""
        await self._look()

    async def __del__(self) -> None:
        """Ray Serve awaits it when it takes the replica away: sessions are parked."""
        await self._models.drain(self._plan.settings.drain)
        await self._lifespan.__aexit__(None, None, None)

    def _used(self, looks: Sequence[_Look]) -> float:
        """Share of the budget that the working sets take; without a budget, of nothing: 0."""
        budget = looks[0].stats.memory.budget_bytes if looks else None  # all have the same
        if not budget:
            return 0.0
        now, seconds = time.monotonic(), self._plan.flags.working_set_seconds
        return min(1.0, sum(working_set_bytes(look.sessions, now, seconds) for look in looks) / budget)

    async def _look(self) -> list[_Look]:
        """At each model that is loaded; an answer may take until its step has ended."""
        engines = [model.ready_engine() for model in self._models.loaded]
        return [_Look(engine, await engine.stats(), await engine.sessions()) for engine in engines]


async def answers(app: ASGIApp, request: Forwarded) -> AsyncGenerator[list[Message], None]:
    """An app's answer as ASGI messages; those that come together at once. Closing it is the client's leaving."""
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    answering = asyncio.ensure_future(app(request.scope, _receiver(request.body), messages.put))
    answering.add_done_callback(lambda _: messages.put_nowait(None))
    try:
        is_over = False
        while not is_over:
            batch = [await messages.get()]
            while not messages.empty():
                batch.append(messages.get_nowait())
            is_over = batch[-1] is None
            if sent := [message for message in batch if message is not None]:
                yield sent
    finally:
        answering.cancel()
        for problem in await asyncio.gather(answering, return_exceptions=True):
            if isinstance(problem, Exception):
                logger.error("a request failed", exc_info=problem)


def _receiver(body: bytes) -> Receive:
    """ASGI's ``receive`` for a body that is there. Whoever waits for the client's leaving waits to be cancelled."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else await asyncio.Future()

    return receive
