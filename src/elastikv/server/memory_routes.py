"""``/memory``: the elastic memory watched, and changed while it runs."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated, Any, Literal

import psutil
from fastapi import APIRouter, Depends, Query
from pydantic import Field, model_validator

from elastikv.memory.base import MemoryStats
from elastikv.server.schemas import INT32_MAX, Body, Int, Text
from elastikv.server.state import ModelState, watched_model

router = APIRouter()

State = Annotated[ModelState, Depends(watched_model)]


class MemoryRequest(Body):
    """One wish: ``n_cells``, ``shrink``, or ``budget``."""

    n_cells: Int | None = Field(None, ge=1, le=INT32_MAX)
    shrink: Literal[True] | None = None
    budget: Text | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> MemoryRequest:
        if sum(wish is not None for wish in (self.n_cells, self.shrink, self.budget)) != 1:
            raise ValueError('give exactly one of {"n_cells": N}, {"shrink": true} and {"budget": "2GiB"}')
        return self


@router.get("/memory")
async def watch_memory(state: State, since: Annotated[int, Query(ge=0)] = 0) -> dict[str, Any]:
    """Totals, sessions, and events after number ``since``; times are seconds of ``clock``.

    ``used_bytes``: the least that could hold what is held. ``static_bytes``: what a cache that commits ``-c``
    for each of the ``--parallel`` sequences would hold. ``others_bytes``: what other models hold under the same budget.
    """
    engine = state.ready_engine()
    stats = await engine.stats()
    llm = engine.llm
    n_parallel = llm.scheduler.options.n_parallel
    return {
        "clock": time.monotonic(),
        **_totals(stats.memory),
        "used_bytes": sum(llm.cost.n_bytes(sequence.used_cells) for sequence in stats.memory.sequences),
        "static_bytes": llm.static_bytes() * n_parallel,
        "others_bytes": max(llm.budget.kv_bytes - stats.memory.committed_bytes, 0),
        "process_bytes": psutil.Process().memory_info().rss,
        "n_ctx": llm.n_ctx,
        "n_parallel": n_parallel,
        "n_running": stats.n_running,
        "n_waiting": stats.n_waiting,
        "n_idle": stats.n_idle,
        "sessions": [
            {
                **asdict(session),
                "used_bytes": llm.cost.n_bytes(session.used_cells) if session.committed_bytes else 0,
                "static_bytes": llm.static_bytes(),
            }
            for session in await engine.sessions()
        ],
        "events": [asdict(event) for event in engine.events(since)],
    }


@router.get("/memory/check")
async def check_memory(state: State) -> dict[str, Any]:
    """Look at every invariant of the memory; ``problem`` says which one does not hold."""
    try:
        await state.ready_engine().check()
    except AssertionError as error:
        return {"sound": False, "problem": str(error)}
    return {"sound": True, "problem": None}


@router.post("/memory")
async def change_memory(body: MemoryRequest, state: State) -> dict[str, Any]:
    """Resize to ``n_cells``, give back what is spare, or set another budget; answers with the new totals."""
    engine = state.ready_engine()
    freed = 0
    if body.n_cells is not None:
        await engine.resize(body.n_cells)
    elif body.budget is not None:
        await engine.set_budget(body.budget)
    else:
        freed = await engine.shrink()
    return {"freed_bytes": freed, **_totals((await engine.stats()).memory)}


def _totals(memory: MemoryStats) -> dict[str, Any]:
    totals = asdict(memory)
    # Sessions are told by their own numbers, not by the sequence ids of the memory.
    del totals["sequences"]
    return totals
