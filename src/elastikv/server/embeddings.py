"""``POST /v1/embeddings``, and llama-server's ``/embedding``."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request

from elastikv.server.errors import APIError, not_supported
from elastikv.server.llama_schemas import EmbeddingRequest
from elastikv.server.prompts import mixed_prompts
from elastikv.server.schemas import EmbeddingsRequest
from elastikv.server.state import ModelState, used_model
from elastikv.server.streaming import while_connected

router = APIRouter()

State = Annotated[ModelState, Depends(used_model)]


@router.post("/v1/embeddings")
async def embeddings(body: EmbeddingsRequest, request: Request, state: State) -> dict[str, Any]:
    """Embeddings of length 1, pooled as ``--pooling`` says."""
    if body.dimensions is not None:
        raise not_supported("dimensions", "dimensions is not supported; leave it out")
    prompts = await mixed_prompts(body.input, state, "input")
    vectors = await while_connected(request.receive, _embed(state, prompts, normalize=True))
    n_tokens = sum(map(len, prompts))
    return {
        "object": "list",
        "model": state.model_name,
        "data": [
            {"object": "embedding", "index": index, "embedding": _encoded(vector, body.encoding_format)}
            for index, vector in enumerate(vectors)
        ],
        "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
    }


@router.post("/embeddings", include_in_schema=False)
@router.post("/embedding")
async def embedding(body: EmbeddingRequest, request: Request, state: State) -> list[dict[str, Any]]:
    """The same in llama-server's words."""
    param = "content" if body.content is not None else "input"
    given = body.content if body.content is not None else body.input
    if given is None:
        raise APIError(400, "content: give a text or several", param="content")
    prompts = await mixed_prompts(given, state, param)
    normalize = body.embd_normalize != -1
    vectors = await while_connected(request.receive, _embed(state, prompts, normalize=normalize))
    return [{"index": index, "embedding": [vector]} for index, vector in enumerate(vectors)]


async def _embed(state: ModelState, prompts: Sequence[list[int]], *, normalize: bool) -> list[list[float]]:
    engine, pooling = state.ready_engine(), state.settings.pooling
    return [await engine.embed(prompt, pooling=pooling, normalize=normalize) for prompt in prompts]


def _encoded(vector: list[float], encoding: str | None) -> list[float] | str:
    return base64.b64encode(np.array(vector, "<f4").tobytes()).decode() if encoding == "base64" else vector
