"""From keyword arguments to an engine: options are checked before weights are read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch

from elastikv.engine.engine import Engine
from elastikv.engine.events import EventLog
from elastikv.engine.sessions import FIRST_SEQ_ID
from elastikv.engine.workspace import Workspace
from elastikv.errors import InvalidRequest
from elastikv.kernels import Kernels, select_kernels
from elastikv.memory import Budget, MemoryCost, MemoryOptions, ResizeEvent, make_memory
from elastikv.memory.formats import FORMATS
from elastikv.memory.storage import StorageKind
from elastikv.models import load_model, read_config
from elastikv.weights.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which model, and in which form. ``progress`` is called with bytes read and bytes in all."""

    path: Path
    dtype: str
    quantize: str | None
    kernels: str
    n_threads: int | None
    progress: Callable[[int, int], None] | None


@dataclass(frozen=True, slots=True)
class Loaded:
    """All that an ``LLM`` runs on."""

    engine: Engine
    workspace: Workspace
    tokenizer: Tokenizer
    budget: Budget
    cost: MemoryCost


def load(
    model: ModelOptions, memory: dict[str, Any], budget: Budget, n_ctx: int | None, n_ubatch: int, events: EventLog
) -> Loaded:
    """Load a model and open its memory. ``memory``: fields of MemoryOptions but for n_ctx.

    Raises ModelError, InvalidRequest, and CacheFull if not even the compute buffers fit.
    """
    n_ctx = context_size(n_ctx, read_config(model.path).n_ctx_train)
    MemoryOptions(n_ctx, **memory)  # checked before a model of many gigabytes is read
    kernels = select_kernels(model.kernels)
    if model.n_threads is not None:
        set_threads(kernels, model.n_threads)
    loaded = load_model(
        model.path, dtype=model.dtype, quantize=model.quantize, kernels=kernels, progress=model.progress
    )
    decoder = loaded.model
    options = MemoryOptions(n_ctx, on_resize=_record_in(events), rotate=decoder.rotate_k, **memory)
    workspace = Workspace(decoder, kernels, budget, n_ubatch)
    # Growth policies give way to what is left; so the buffers come first, and cells get the rest.
    workspace.reserve(min(options.initial, n_ctx))
    engine = Engine(decoder, make_memory(decoder.memory_layers, options, budget), workspace, n_ubatch)
    cost = MemoryCost(decoder.memory_layers, options)
    return Loaded(engine, workspace, loaded.tokenizer, budget, cost)


def context_size(n_ctx: int | None, n_ctx_train: int) -> int:
    """The limit of a sequence: the model's own if none is given; beyond it is allowed, with a warning."""
    if n_ctx is None:
        return n_ctx_train
    if n_ctx < 1:
        raise InvalidRequest(f"n_ctx (-c) must be at least 1, got {n_ctx}; leave it out for the model's own maximum")
    if n_ctx > n_ctx_train:
        warnings.warn(
            f"n_ctx = {n_ctx} is above the model's maximum of {n_ctx_train}; text beyond that may be poor",
            stacklevel=4,
        )
    return n_ctx


def cell_types(kv_dtype: str | tuple[str, str]) -> dict[str, str]:
    """``k_type`` and ``v_type`` from one name or one for each. Raises InvalidRequest."""
    k_type, v_type = (kv_dtype, kv_dtype) if isinstance(kv_dtype, str) else kv_dtype
    check_choice("kv_dtype (-ctk, -ctv)", k_type, tuple(FORMATS))
    check_choice("kv_dtype (-ctk, -ctv)", v_type, tuple(FORMATS))
    return {"k_type": k_type, "v_type": v_type}


def storage_kind(kv_storage: str) -> StorageKind:
    """Raises InvalidRequest."""
    check_choice("kv_storage", kv_storage, get_args(StorageKind))
    return cast(StorageKind, kv_storage)


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InvalidRequest(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def set_threads(kernels: Kernels, n_threads: int) -> None:
    """Torch and the kernels take turns on the same number of cores. Raises InvalidRequest."""
    if n_threads < 1:
        raise InvalidRequest(f"n_threads (-t) must be at least 1, got {n_threads}; leave it out for all cores")
    if kernels.name == "cpu":
        from elastikv.kernels.cpu.threads import set_threads as set_kernel_threads

        set_kernel_threads(n_threads)
    else:
        torch.set_num_threads(n_threads)


def _record_in(events: EventLog) -> Callable[[ResizeEvent], None]:
    def record(event: ResizeEvent) -> None:
        session = event.seq_id - FIRST_SEQ_ID if event.seq_id >= FIRST_SEQ_ID else None
        events.add("resize", session, n_cells=event.new_cells, n_bytes=event.committed_bytes)

    return record
