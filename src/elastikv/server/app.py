"""The application: routes, limits and the life of the engine, put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import Depends, FastAPI
from starlette.middleware.cors import CORSMiddleware

from elastikv.server import (
    anthropic_messages,
    description,
    embeddings,
    errors,
    info,
    llama_completion,
    memory_routes,
    metrics,
    openai_chat,
    openai_completions,
    openai_responses,
    page,
    slots,
    tokenize,
)
from elastikv.server.limits import LimitClient, OneLength, RequireKey
from elastikv.server.models import LoadEngine, Models, ServedModel
from elastikv.server.observing import ObserveRequests, log_request
from elastikv.server.origins import RefuseCrossSite, RequireHost
from elastikv.server.settings import ServerSettings
from elastikv.server.state import ServerState

_ROUTES = (
    info,
    openai_chat,
    openai_completions,
    openai_responses,
    anthropic_messages,
    llama_completion,
    embeddings,
    tokenize,
    slots,
    memory_routes,
    metrics,
)

LoadFailed = Callable[[BaseException], None]


def create_app(settings: ServerSettings, models: Models | LoadEngine, load_failed: LoadFailed | None = None) -> FastAPI:
    """An app that answers at once and loads its models in the background.

    models: or what makes the engine of the only one, in a thread.
    load_failed: is handed what loading at the start raises.
    """
    if not isinstance(models, Models):
        models = Models([ServedModel(models)])
    state = ServerState(settings, models)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        opening = asyncio.create_task(_open(models, load_failed))
        try:
            yield
        finally:
            opening.cancel()
            # The web server has drained the requests already; what is left is parked or dropped.
            await models.close()

    # The interactive documentation would load scripts from elsewhere: only the description is served.
    app = FastAPI(
        title="elastikv",
        version=version("elastikv"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(errors.require_json)],
        responses=description.EVERYWHERE,
        redirect_slashes=False,  # errors.install redirects, without the Host that a client may have made up
    )
    app.state.server = state
    for module in _ROUTES:
        app.include_router(module.router)
    page.install(app)
    errors.install(app)
    description.install(app, needs_key=bool(settings.api_keys))
    # The one that is added last sees a request first.
    app.add_middleware(ObserveRequests, observe=state.metrics.observe_request)
    app.add_middleware(LimitClient, max_body_bytes=settings.max_body_bytes, timeout=settings.timeout)
    app.add_middleware(RequireKey, keys=settings.api_keys)
    app.add_middleware(RefuseCrossSite, cors_origins=settings.cors_origins)
    if settings.cors_origins:
        # Also around the key: browsers ask whether they may send one before they do.
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    app.add_middleware(RequireHost, settings=settings)
    app.add_middleware(OneLength)
    if settings.log_requests:
        app.add_middleware(ObserveRequests, observe=log_request)
    return app


async def _open(models: Models, load_failed: LoadFailed | None) -> None:
    try:
        await models.open()
    except Exception as error:  # whatever it was, the owner of the process has to hear of it
        if load_failed is None:
            raise
        load_failed(error)
