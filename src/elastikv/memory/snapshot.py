"""A sequence to a file and back.

The file (see ``checked_file``) holds ``token_ids``, then the used rows of every plane of every attention
layer, then the states of every recurrent layer. Its metadata names the model (fingerprint) and the layout.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from elastikv.errors import InvalidRequest, SnapshotError
from elastikv.memory import checked_file
from elastikv.memory.base import Memory
from elastikv.memory.hybrid import halves
from elastikv.memory.states import StateBuffer
from elastikv.memory.stream import Stream

_FORMAT = "elastikv-session 1"


@dataclass(frozen=True, slots=True)
class SnapshotHeader:
    """What a saved session says of itself; only ``load_sequence`` checks that its contents are whole."""

    fingerprint: str
    layout: str
    token_ids: list[int]
    n_tokens: int
    """Tokens that the memory holds; ``token_ids`` may have more."""
    first: int
    n_prompt: int
    """How many of ``token_ids`` were the last prompt; the rest is the reply to it."""
    file: checked_file.Header


def save_sequence(
    path: str | Path,
    memory: Memory,
    seq_id: int,
    token_ids: Sequence[int],
    fingerprint: str,
    n_prompt: int | None = None,
) -> None:
    """Write a sequence atomically: the file is there whole or not at all. Raises OSError, InvalidRequest.

    token_ids: of the whole sequence, for whoever restores it; n_prompt: how many of them were the last prompt,
    None for all.
    """
    cache, states = halves(memory)
    n_tokens = memory.n_tokens(seq_id)
    if not n_tokens:
        raise InvalidRequest(f"sequence {seq_id} is empty; there is nothing to save")
    stream = cache.stream(seq_id) if cache else None
    metadata = {
        "format": _FORMAT,
        "fingerprint": fingerprint,
        "layout": _layout(memory),
        "n_tokens": str(n_tokens),
        "n_prompt": str(len(token_ids) if n_prompt is None else n_prompt),
        "first": str(stream.cells.first if stream else 0),
    }
    tensors = _tensors(token_ids, stream, states.state(seq_id) if states else None)
    checked_file.write(Path(path), tensors, metadata)


def read_header(path: str | Path) -> SnapshotHeader:
    """The header and the token ids; the rest of the file is not read. Raises SnapshotError."""
    path = Path(path)
    with checked_file.open_file(path) as file:
        return _read_header(file, path)


def load_sequence(path: str | Path, memory: Memory, seq_id: int, fingerprint: str) -> SnapshotHeader:
    """Restore a sequence in place of what ``seq_id`` held; returns what the file says of itself.

    Raises SnapshotError (another model, another layout, truncated, altered) and CacheFull; the
    memory is unchanged then.
    """
    path = Path(path)
    with checked_file.open_file(path) as file:
        header = _read_header(file, path)
        if header.fingerprint != fingerprint:
            raise SnapshotError(f"{path}: saved by another model ({header.fingerprint}, not {fingerprint})")
        if header.layout != _layout(memory):
            raise SnapshotError(f"{path}: saved with other KV types or layers than this memory has")
        cache, states = halves(memory)
        state = states.new_state() if states else None
        stream: Stream | None = None
        try:
            n_cells = header.n_tokens - header.first
            stream = cache.new_stream(n_cells) if cache else None
            if stream:
                _prepare_stream(stream, header, n_cells, path)
            checked_file.read_into(file, header.file, _tensors(header.token_ids, stream, state), path)
        except BaseException:
            if stream:
                stream.storage.close()
            if states:
                states.drop_state(state)
            raise
    if cache:
        cache.attach(seq_id, stream)
    if states:
        states.attach(seq_id, state, header.n_tokens)
    return header


def _layout(memory: Memory) -> str:
    """Two memories with the same layout can read each other's sessions."""
    cache, states = halves(memory)
    layout: dict[str, Any] = {}
    if cache:
        layout["cell_types"] = [cache.k_format.name, cache.v_format.name]
        layout["attention"] = [
            [layer.n_kv_heads, layer.head_dim, layer.head_dim_v, layer.window] for layer in cache.layers
        ]
    if states:
        layout["recurrent"] = [layer.shapes for layer in states.layers]
    return json.dumps(layout, separators=(",", ":"))


def _tensors(token_ids: Sequence[int], stream: Stream | None, state: StateBuffer | None) -> dict[str, torch.Tensor]:
    """The tensors of a sequence by name, in file order, as views of its memory."""
    tensors = {"token_ids": torch.tensor(list(token_ids), dtype=torch.int64)}
    if stream:
        for layer, planes in enumerate(stream.storage.layers):
            rows = slice(stream.storage.released(layer), stream.cells.used)
            for plane, tensor in zip(planes, stream.storage.tensors(layer), strict=True):
                tensors[f"attention.{layer}.{plane.name}"] = tensor[rows]
    if state:
        for layer, layer_state in enumerate(state.layers):
            for index, tensor in enumerate(layer_state):
                tensors[f"recurrent.{layer}.{index}"] = tensor
    return tensors


def _prepare_stream(stream: Stream, header: SnapshotHeader, n_cells: int, path: Path) -> None:
    """Make a fresh stream's bookkeeping that of the saved one, rows behind windows included."""
    for layer in range(len(stream.storage.layers)):
        n_rows = _entry_rows(header, f"attention.{layer}.k", path)
        if not 0 <= n_rows <= n_cells:
            raise SnapshotError(f"{path}: layer {layer} holds {n_rows} rows for {n_cells} cells")
        stream.storage.release_front(layer, n_cells - n_rows)
    stream.cells.first = header.first
    stream.cells.append(n_cells)
    if not stream.can_end_at(n_cells):
        raise SnapshotError(f"{path}: rows inside a window are missing")


def _entry_rows(header: SnapshotHeader, name: str, path: Path) -> int:
    try:
        return int(header.file.tensors[name]["shape"][0])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise SnapshotError(f"{path}: {name} is missing or malformed") from error


def _read_header(file: BinaryIO, path: Path) -> SnapshotHeader:
    header = checked_file.read_header(file, path, _FORMAT)
    metadata = header.metadata
    try:
        n_ids = int(header.tensors["token_ids"]["shape"][0])
        n_tokens, n_prompt, first = (int(metadata[key]) for key in ("n_tokens", "n_prompt", "first"))
        fingerprint, layout = metadata["fingerprint"], metadata["layout"]
        token_ids = np.frombuffer(file.read(8 * n_ids), dtype="<i8", count=n_ids).tolist()
        is_sound = 0 <= first < n_tokens
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise SnapshotError(f"{path}: not a saved session, or its header is damaged") from error
    if not is_sound:
        raise SnapshotError(f"{path}: not a saved session, or its header is damaged")
    return SnapshotHeader(fingerprint, layout, token_ids, n_tokens, first, n_prompt, header)
