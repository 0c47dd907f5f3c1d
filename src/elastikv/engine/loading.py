"""From keyword arguments to a runtime: options are checked before weights are read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import torch

from elastikv.arguments import MOST, instance, whole_number
from elastikv.engine.events import EventLog
from elastikv.engine.sessions import FIRST_SEQ_ID
from elastikv.engine.sharing import SharedBudget
from elastikv.errors import InvalidRequest
from elastikv.kernels.base import AttentionPrecision
from elastikv.memory import MemoryOptions, ResizeEvent
from elastikv.memory.formats import FORMATS
from elastikv.memory.storage import StorageKind
from elastikv.runtimes import find
from elastikv.runtimes.base import Runtime, RuntimeOptions

DEVICES = ("cpu",)
"""Torch devices that ``LLM`` takes. Nothing below it knows only these; but on others, nothing has been tried."""

_MOST_THREADS = 1024
_TYPE_NAMES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def load(
    path: Path,
    memory: dict[str, Any],
    shared: SharedBudget,
    n_ctx: int | None,
    n_ubatch: int,
    events: EventLog,
    *,
    runtime: str,
    device: str,
    dtype: str,
    quantize: str | None,
    kernels: str,
    attention_precision: AttentionPrecision,
    n_gpu_layers: int,
    n_threads: int | None,
    progress: Callable[[int, int], None] | None,
) -> Runtime:
    """Load a model with the runtime that can run it. ``memory``: fields of MemoryOptions but for n_ctx.

    Raises ModelError, InvalidRequest, and CacheFull if not even the compute buffers fit.
    """
    if progress is not None and not callable(progress):
        raise InvalidRequest(f"progress must be a function of bytes read and bytes in all, got {progress!r}")
    if device not in DEVICES:
        raise InvalidRequest(
            f"device (--device) must be {' or '.join(DEVICES)}, got {device!r}; no other is served yet"
        )
    n_gpu_layers = whole_number("n_gpu_layers (-ngl)", n_gpu_layers, -1, MOST, "-1 is all layers, 0 none")
    source = find(path, runtime, n_gpu_layers)
    n_ctx = context_size(n_ctx, source.config.n_ctx_train)
    memory_options = MemoryOptions(n_ctx, on_resize=_record_in(events), **memory)
    if n_threads is not None:
        n_threads = whole_number("n_threads (-t)", n_threads, 1, _MOST_THREADS, "leave it out for all cores")
    return source.load(
        RuntimeOptions(
            memory=memory_options,
            budget=shared.budget,
            make_room_for=shared.make_room_for,
            n_ubatch=n_ubatch,
            device=device,
            dtype=dtype,
            quantize=quantize,
            kernels=kernels,
            attention_precision=attention_precision,
            n_gpu_layers=n_gpu_layers,
            n_threads=n_threads,
            progress=progress,
        )
    )


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
    """The storage of this name. Raises InvalidRequest."""
    check_choice("kv_storage", kv_storage, get_args(StorageKind))
    return cast(StorageKind, kv_storage)


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise InvalidRequest, which lists the choices, if ``value`` is none of them."""
    if value not in choices:
        raise InvalidRequest(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _record_in(events: EventLog) -> Callable[[ResizeEvent], None]:
    def record(event: ResizeEvent) -> None:
        session = event.seq_id - FIRST_SEQ_ID if event.seq_id >= FIRST_SEQ_ID else None
        events.add("resize", session, n_cells=event.new_cells, n_bytes=event.committed_bytes)

    return record
