"""``/slots``: what each session holds, and sessions to files and back."""

from __future__ import annotations

import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends

from elastikv.server.description import errors
from elastikv.server.errors import APIError, unavailable
from elastikv.server.llama_schemas import SlotFileRequest
from elastikv.server.state import ModelState, watched_model

router = APIRouter()

State = Annotated[ModelState, Depends(watched_model)]

_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


@router.get("/slots")
async def list_slots(state: State, fail_on_no_slot: str | None = None) -> list[dict[str, Any]]:
    """Every session: cells used, capacity, committed bytes, state.

    ``fail_on_no_slot``, whatever it is: 503 while ``--parallel`` replies are computed.
    """
    engine = state.ready_engine()
    n_ctx = engine.llm.memory.n_ctx
    if fail_on_no_slot and (await engine.stats()).n_running >= engine.llm.scheduler.options.n_parallel:
        raise unavailable("as many replies as --parallel allows are computed already")
    return [
        {**asdict(session), "n_ctx": n_ctx, "is_processing": session.state == "running"}
        for session in await engine.sessions()
    ]


@router.post("/slots/{slot_id}", responses=errors(404, 501))
async def act_on_slot(
    slot_id: int,
    action: Literal["save", "restore", "erase"],
    state: State,
    body: SlotFileRequest | None = None,
) -> dict[str, Any]:
    """``save`` and ``restore`` need ``{"filename": ...}``; a restored session gets an id of its own."""
    engine = state.ready_engine()
    if action == "erase":
        await engine.erase_session(slot_id)
        return {"id_slot": slot_id, "erased": True}
    path = _slot_path(state, body.filename if body else None)
    started = time.perf_counter()
    try:
        if action == "save":
            n_tokens = await engine.save_session(slot_id, path)
        elif not path.is_file():
            raise APIError(404, f"there is no saved session {path.name!r}", param="filename")
        else:
            slot_id = await engine.restore_session(path)
            n_tokens = next((session.used_cells for session in await engine.sessions() if session.id == slot_id), 0)
    except OSError as error:
        raise APIError(500, f"cannot {action} {path.name}: {error.strerror}", type="server_error") from error
    return {
        "id_slot": slot_id,
        "filename": path.name,
        "n_saved" if action == "save" else "n_restored": n_tokens,
        "n_written" if action == "save" else "n_read": path.stat().st_size,
        "timings": {f"{action}_ms": (time.perf_counter() - started) * 1e3},
    }


def _slot_path(state: ModelState, filename: str | None) -> Path:
    """A file right inside ``--slot-save-path``: no separators, no leading dot, nothing odd."""
    folder = state.settings.slot_save_path
    if folder is None:
        raise APIError(501, "start the server with --slot-save-path to save sessions", type="not_supported_error")
    if filename is None or not _SAFE_NAME.fullmatch(filename):
        message = "filename: give a plain name of up to 128 letters, digits, '.', '_' and '-'"
        raise APIError(400, message, param="filename")
    return folder / filename
