"""What a client may want to know before it asks: health, models, properties."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import Annotated, Any

import torch
from fastapi import APIRouter, Depends

from elastikv.errors import format_bytes
from elastikv.server.description import errors
from elastikv.server.errors import APIError
from elastikv.server.state import ServerState, ready_state, server_state

router = APIRouter()

State = Annotated[ServerState, Depends(ready_state)]


def ready_line(state: ServerState) -> str:
    """For the log: what is served from now on, and within which bounds."""
    llm = state.ready_engine().llm
    limit = llm.budget.limit_bytes
    return (
        f"ready: {state.model_name} ({llm.model.info.architecture}), -c {llm.n_ctx}, "
        f"budget {'none' if limit is None else format_bytes(limit)}, "
        f"{llm.scheduler.options.n_parallel} replies at once, {torch.get_num_threads()} threads, "
        f"elastikv {version('elastikv')}"
    )


@router.head("/health", include_in_schema=False)
@router.get("/v1/health", include_in_schema=False)
@router.get("/health")
async def health(state: Annotated[ServerState, Depends(server_state)]) -> dict[str, str]:
    """200 once the model is loaded, 503 before."""
    state.ready_engine()
    return {"status": "ok"}


@router.get("/models", include_in_schema=False)
@router.get("/v1/models")
async def list_models(state: State) -> dict[str, Any]:
    """The one model that is served; ``meta.n_ctx`` is the ceiling of every session."""
    return {"object": "list", "data": [_model(state)]}


@router.get("/models/{model_id:path}", include_in_schema=False)
@router.get("/v1/models/{model_id:path}", responses=errors(404))
async def get_model(model_id: str, state: State) -> dict[str, Any]:
    """The model that is served, by its name; 404 for any other."""
    if model_id != state.model_name:
        raise APIError(404, f"no model is called {model_id!r}", param="model", code="model_not_found")
    return _model(state)


def _model(state: ServerState) -> dict[str, Any]:
    llm = state.ready_engine().llm
    return {
        "id": state.model_name,
        "object": "model",
        "created": state.started,
        "owned_by": "elastikv",
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
