"""From keyword arguments to an engine: options are checked before weights are read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch

from elastikv.arguments import MOST, instance, whole_number
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

_MOST_THREADS = 1024
_TYPE_NAMES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


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
    kernels: Kernels
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
    if model.progress is not None and not callable(model.progress):
        raise InvalidRequest(f"progress must be a function of bytes read and bytes in all, got {model.progress!r}")
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
    return Loaded(engine, kernels, workspace, loaded.tokenizer, budget, cost)


def context_size(n_ctx: int | None, n_ctx_train: int) -> int:
    """The limit of a sequence: the model's own if none is given; beyond it is allowed, with a warning."""
    if n_ctx is None:
        return n_ctx_train
    n_ctx = whole_number("n_ctx (-c)", n_ctx, 1, MOST, "leave it out for the model's own maximum")
    if n_ctx > n_ctx_train:
        warnings.warn(
            f"n_ctx = {n_ctx} is above the model's maximum of {n_ctx_train}; text beyond that may be poor",
            stacklevel=4,
        )
    return n_ctx


def type_name(name: str, value: str | torch.dtype) -> str:
    """Our short name of a type that may be given by torch's. Raises InvalidRequest if it is no name at all."""
    instance(name, value, (str, torch.dtype), 'the name of a type ("f32", "bfloat16", ...) or a torch.dtype')
    text = str(value).removeprefix("torch.")
    return _TYPE_NAMES.get(text, text)


def cell_types(kv_dtype: str | torch.dtype | Sequence[str | torch.dtype]) -> dict[str, str]:
    """``k_type`` and ``v_type`` from one name or one for each. Raises InvalidRequest."""
    name = "kv_dtype (-ctk, -ctv)"
    each = kv_dtype if isinstance(kv_dtype, (tuple, list)) else (kv_dtype, kv_dtype)
    if len(each) != 2:
        raise InvalidRequest(f"{name} must be one type, or two: of K and of V; got {kv_dtype!r}")
    k_type, v_type = (type_name(name, value) for value in each)
    check_choice(name, k_type, tuple(FORMATS))
    check_choice(name, v_type, tuple(FORMATS))
    return {"k_type": k_type, "v_type": v_type}


def storage_kind(kv_storage: str) -> StorageKind:
    """Raises InvalidRequest."""
    check_choice("kv_storage", kv_storage, get_args(StorageKind))
    return cast(StorageKind, kv_storage)


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise InvalidRequest, which lists the choices, if ``value`` is none of them."""
    if value not in choices:
        raise InvalidRequest(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def set_threads(kernels: Kernels, n_threads: int) -> None:
    """Torch and the kernels take turns on the same number of cores. Raises InvalidRequest."""
    n_threads = whole_number("n_threads (-t)", n_threads, 1, _MOST_THREADS, "leave it out for all cores")
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
