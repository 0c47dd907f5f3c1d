"""What routes share: the settings, the models, and the counters."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from fastapi import Request

from elastikv.server.metrics import RequestMetrics
from elastikv.server.models import Models, ServedModel
from elastikv.server.settings import ServerSettings

if TYPE_CHECKING:
    from elastikv.engine.async_llm import AsyncLLM


class ServerState:
    """One server."""

    def __init__(self, settings: ServerSettings, models: Models) -> None:
        self.settings = settings
        self.models = models
        self.metrics = RequestMetrics()
        self.started = int(time.time())


class ModelState:
    """One model, as a request sees it, and the server around it."""

    def __init__(self, server: ServerState, model: ServedModel) -> None:
        self.settings = server.settings
        self.metrics = server.metrics
        self.started = server.started
        self._model = model

    def ready_engine(self) -> AsyncLLM:
        """The engine. Raises APIError (503) while the model is not loaded."""
        return self._model.ready_engine()

    @property
    def model_name(self) -> str:
        """The alias, or what the model calls itself."""
        return self._model.name or self.ready_engine().llm.model.info.name


def server_state(request: Request) -> ServerState:
    """The dependency of routes that answer while models load."""
    state: ServerState = request.app.state.server
    return state


async def watched_model(request: Request) -> ModelState:
    """The dependency of routes that look at a model, which is loaded: 503 if it is not."""
    state = server_state(request)
    model = state.models.find(await _model_named(request, state))
    model.ready_engine()
    return ModelState(state, model)


async def used_model(request: Request) -> AsyncIterator[ModelState]:
    """The dependency of routes that compute: waits until the model is loaded, and keeps it while it answers."""
    state = server_state(request)
    async with state.models.use(await _model_named(request, state)) as model:
        yield ModelState(state, model)


async def _model_named(request: Request, state: ServerState) -> str | None:
    """``model`` of the query or of the body. Where there is only one model, nobody looks."""
    if len(state.models.all) == 1:
        return None
    named = request.query_params.get("model")
    if named is None and await request.body():
        try:
            body = await request.json()
        except ValueError:  # whoever reads the body refuses it
            return None
        named = body.get("model") if isinstance(body, dict) else None
    return named if isinstance(named, str) else None
