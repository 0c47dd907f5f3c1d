"""A sequence to a file and back.

The file is a safetensors file: ``token_ids``, then the used rows of every plane of every attention
layer, then the states of every recurrent layer. Its metadata names the model (fingerprint) and the layout, and
holds a SHA-256 of everything else. It is written and read in pieces, so a session is never in memory twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from elastikv.errors import InvalidRequest, SnapshotError
from elastikv.memory.base import Memory
from elastikv.memory.hybrid import HybridMemory
from elastikv.memory.kv_cache import KVCache
from elastikv.memory.recurrent import RecurrentMemory
from elastikv.memory.states import StateBuffer
from elastikv.memory.stream import Stream

_FORMAT, _VERSION = "elastikv-session", "1"
_NO_CHECKSUM = "0" * 64
_MAX_HEADER_BYTES = 64 << 20
_PIECE_BYTES = 8 << 20
_DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int8: "I8",
    torch.int64: "I64",
}


@dataclass(frozen=True, slots=True)
class SnapshotHeader:
    """What a saved session says of itself; only ``load_sequence`` checks that its contents are whole."""

    fingerprint: str
    layout: str
    token_ids: list[int]
    n_tokens: int
    """Tokens that the memory holds; ``token_ids`` may have more."""
    first: int
    checksum: str
    tensors: dict[str, Any]
    data_start: int


@dataclass(frozen=True, slots=True)
class _Content:
    """The tensors of a sequence by name, in file order, as views of its memory."""

    tensors: dict[str, torch.Tensor]

    def entries(self) -> dict[str, Any]:
        """safetensors' description of each; offsets count from the end of the header."""
        entries, offset = {}, 0
        for name, tensor in self.tensors.items():
            end = offset + tensor.numel() * tensor.element_size()
            entries[name] = {
                "dtype": _DTYPES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [offset, end],
            }
            offset = end
        return entries


def save_sequence(path: str | Path, memory: Memory, seq_id: int, token_ids: Sequence[int], fingerprint: str) -> None:
    """Write a sequence atomically: the file is there whole or not at all. Raises OSError, InvalidRequest.

    token_ids: of the whole sequence, for whoever restores it. A writer that is killed leaves a
    ``*.tmp`` file beside ``path``, which nobody reads.
    """
    path = Path(path)
    cache, states = _halves(memory)
    n_tokens = memory.seq_pos_max(seq_id) + 1
    if not n_tokens:
        raise InvalidRequest(f"sequence {seq_id} is empty; there is nothing to save")
    stream = cache.stream(seq_id) if cache else None
    content = _content(token_ids, stream, states.state(seq_id) if states else None)
    metadata = {
        "format": _FORMAT,
        "version": _VERSION,
        "fingerprint": fingerprint,
        "layout": _layout(memory),
        "n_tokens": str(n_tokens),
        "first": str(stream.cells.first if stream else 0),
        "checksum": _NO_CHECKSUM,
    }
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            _write(file, metadata, content)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def read_header(path: str | Path) -> SnapshotHeader:
    """The header and the token ids; the rest of the file is not read. Raises SnapshotError."""
    with _open(path) as file:
        return _read_header(file, Path(path))


def load_sequence(path: str | Path, memory: Memory, seq_id: int, fingerprint: str) -> list[int]:
    """Restore a sequence in place of what ``seq_id`` held; returns its token ids.

    Raises SnapshotError (another model, another layout, truncated, altered) and CacheFull; the
    memory is unchanged then.
    """
    path = Path(path)
    with _open(path) as file:
        header = _read_header(file, path)
        if header.fingerprint != fingerprint:
            raise SnapshotError(f"{path}: saved by another model ({header.fingerprint}, not {fingerprint})")
        if header.layout != _layout(memory):
            raise SnapshotError(f"{path}: saved with other KV types or layers than this memory has")
        cache, states = _halves(memory)
        state = states.new_state() if states else None
        stream: Stream | None = None
        try:
            n_cells = header.n_tokens - header.first
            stream = cache.new_stream(n_cells) if cache else None
            if stream:
                _prepare_stream(stream, header, n_cells, path)
            _read_into(file, header, _content(header.token_ids, stream, state), path)
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
    return header.token_ids


def _halves(memory: Memory) -> tuple[KVCache | None, RecurrentMemory | None]:
    if isinstance(memory, HybridMemory):
        return memory.attention, memory.recurrent
    if isinstance(memory, KVCache):
        return memory, None
    if isinstance(memory, RecurrentMemory):
        return None, memory
    raise TypeError(f"a {type(memory).__name__} cannot be saved")


def _layout(memory: Memory) -> str:
    """Two memories with the same layout can read each other's sessions."""
    cache, states = _halves(memory)
    layout: dict[str, Any] = {}
    if cache:
        layout["cell_types"] = [cache.options.k_type, cache.options.v_type]
        layout["attention"] = [
            [layer.n_kv_heads, layer.head_dim, layer.head_dim_v, layer.window] for layer in cache.layers
        ]
    if states:
        layout["recurrent"] = [layer.shapes for layer in states.layers]
    return json.dumps(layout, separators=(",", ":"))


def _content(token_ids: Sequence[int], stream: Stream | None, state: StateBuffer | None) -> _Content:
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
    return _Content(tensors)


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
        return int(header.tensors[name]["shape"][0])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise SnapshotError(f"{path}: {name} is missing or malformed") from error


def _write(file: BinaryIO, metadata: dict[str, str], content: _Content) -> None:
    """The checksum is of the file with zeros in the checksum's place, where it is put in the end."""
    header = json.dumps({"__metadata__": metadata, **content.entries()}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    head = struct.pack("<Q", len(header)) + header
    digest = hashlib.sha256(head)
    file.write(head)
    for tensor in content.tensors.values():
        for piece in _pieces(tensor):
            data = piece.cpu().numpy().data
            digest.update(data)
            file.write(data)
    file.seek(head.index(_NO_CHECKSUM.encode()))
    file.write(digest.hexdigest().encode())
    file.flush()


def _read_header(file: BinaryIO, path: Path) -> SnapshotHeader:
    size = os.fstat(file.fileno()).st_size
    length = _header_length(file, size, path)
    try:
        tensors = json.loads(file.read(length))
        metadata = tensors.pop("__metadata__")
        if (metadata["format"], metadata["version"]) != (_FORMAT, _VERSION):
            raise SnapshotError(f"{path}: not a session of this version")
        ends = [entry["data_offsets"][1] for entry in tensors.values()]
        n_ids = int(tensors["token_ids"]["shape"][0])
        n_tokens, first = int(metadata["n_tokens"]), int(metadata["first"])
        fingerprint, layout, checksum = (str(metadata[key]) for key in ("fingerprint", "layout", "checksum"))
        is_whole = 8 + length + max(ends) == size and 0 <= 8 * n_ids <= size and 0 <= first < n_tokens
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise SnapshotError(f"{path}: not a saved session, or its header is damaged") from error
    if not is_whole:
        raise SnapshotError(f"{path}: truncated or damaged")
    token_ids = np.frombuffer(file.read(8 * n_ids), dtype="<i8").tolist()
    return SnapshotHeader(fingerprint, layout, token_ids, n_tokens, first, checksum, tensors, 8 + length)


def _header_length(file: BinaryIO, size: int, path: Path) -> int:
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 0 < length <= min(_MAX_HEADER_BYTES, size - 8):
        raise SnapshotError(f"{path}: truncated, or not a saved session")
    return int(length)


def _read_into(file: BinaryIO, header: SnapshotHeader, content: _Content, path: Path) -> None:
    """Fill the tensors from the file; SnapshotError unless every byte of it is as it was written."""
    if header.tensors != content.entries():
        raise SnapshotError(f"{path}: holds other tensors than this memory")
    file.seek(0)
    head = file.read(header.data_start)
    digest = hashlib.sha256(head.replace(header.checksum.encode(), _NO_CHECKSUM.encode(), 1))
    for tensor in content.tensors.values():
        for piece in _pieces(tensor):
            staged = piece if piece.device.type == "cpu" else torch.empty_like(piece, device="cpu")
            buffer = staged.numpy().data
            if file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
                raise SnapshotError(f"{path}: truncated")
            digest.update(buffer)
            if staged is not piece:
                piece.copy_(staged)
    if digest.hexdigest() != header.checksum:
        raise SnapshotError(f"{path}: altered since it was saved (checksum)")


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """A contiguous tensor as flat uint8 views of bounded size."""
    if tensor.numel():
        yield from tensor.reshape(-1).view(torch.uint8).split(_PIECE_BYTES)


def _open(path: str | Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise SnapshotError(f"{path}: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    """So that the new name survives a crash too; not every system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
