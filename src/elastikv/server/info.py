"""What a client may want to know before it asks: health, models, properties."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from elastikv.server.description import errors
from elastikv.server.errors import APIError, unavailable
from elastikv.server.models import ServedModel
from elastikv.server.schemas import Body, Text
from elastikv.server.state import ModelState, ServerState, server_state, watched_model

router = APIRouter()

State = Annotated[ModelState, Depends(watched_model)]
Server = Annotated[ServerState, Depends(server_state)]


@router.head("/health", include_in_schema=False)
@router.get("/v1/health", include_in_schema=False)
@router.get("/health")
async def health(server: Server) -> dict[str, str]:
    """200 once the models that are loaded at the start are there, 503 before."""
    _require_open(server)
    return {"status": "ok"}


@router.get("/models", include_in_schema=False)
@router.get("/v1/models")
async def list_models(server: Server) -> dict[str, Any]:
    """The models that are served; of those that are loaded, ``meta.n_ctx`` is the ceiling of every session."""
    _require_open(server)
    return {"object": "list", "data": [_model(server, model) for model in server.models.all]}


@router.get("/models/{model_id:path}", include_in_schema=False)
@router.get("/v1/models/{model_id:path}", responses=errors(404))
async def get_model(model_id: str, server: Server) -> dict[str, Any]:
    """A model that is served, by its name; 404 for any other."""
    _require_open(server)
    for model in server.models.all:
        if model.name == model_id:
            return _model(server, model)
    raise APIError(404, f"no model is called {model_id!r}", param="model", code="model_not_found")


class ModelRequest(Body):
    """Which model."""

    model: Text


@router.post("/models/load")
async def load_model(body: ModelRequest, server: Server) -> dict[str, bool]:
    """Begin to load a model; ``/v1/models`` tells when it is there."""
    _require_open(server)
    server.models.load(server.models.find(body.model))
    return {"success": True}


@router.post("/models/unload", responses=errors(409))
async def unload_model(body: ModelRequest, server: Server) -> dict[str, bool]:
    """Give back all memory of a model; the next request loads it again. 409 while a request uses it."""
    _require_open(server)
    model = server.models.find(body.model)
    if model.engine is not None and not await server.models.unload(model, "a client asked for it"):
        raise APIError(409, f"{model.name} is in use; try again when its requests have ended", code="model_in_use")
    return {"success": True}


def _require_open(server: ServerState) -> None:
    if not server.models.is_open:
        raise unavailable("the model is still loading")


def _model(server: ServerState, model: ServedModel) -> dict[str, Any]:
    entry = {
        "id": model.name,
        "object": "model",
        "created": server.started,
        "owned_by": "elastikv",
        "status": {"value": model.status},
    }
    if model.engine is None:
        return entry
    llm = model.engine.llm
    return {
        **entry,
        "max_model_len": llm.memory.n_ctx,
        "meta": {
            "n_ctx": llm.memory.n_ctx,
            "n_ctx_train": llm.model.info.n_ctx_train,
            "n_vocab": llm.model.info.n_vocab,
            "architecture": llm.model.info.architecture,
            "size": llm.model.info.weight_bytes,
        },
    }


@router.get("/props")
async def props(state: State) -> dict[str, Any]:
    """What llama-server's ``/props`` gives, as far as it exists here."""
    llm = state.ready_engine().llm
    return {
        "default_generation_settings": {"n_ctx": llm.memory.n_ctx, "params": asdict(state.settings.sampling)},
        "total_slots": llm.scheduler.options.n_parallel,
        "model_alias": state.model_name,
        "model_path": str(llm.path),
        "model_architecture": llm.model.info.architecture,
        "chat_template": llm.tokenizer.chat_template,
        "modalities": {"vision": False, "audio": False},
        "build_info": f"elastikv {version('elastikv')}",
    }
