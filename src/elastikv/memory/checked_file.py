"""Files of named tensors that are there whole or not at all: safetensors, with a checksum of every byte.

The header's metadata holds a SHA-256 of the rest of the file, header included. Files are written and read in
pieces, so that no tensor is in memory twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import struct
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from elastikv.errors import SnapshotError

_NO_CHECKSUM = "0" * 64
_MAX_HEADER_BYTES = 64 << 20
_PIECE_BYTES = 8 << 20
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int64: "I64",
    torch.int8: "I8",
    torch.uint8: "U8",
}

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself; only ``read_into`` and ``verify`` check that its contents are whole.

    tensors: safetensors' description of each, by name, in the file's order.
    """

    metadata: dict[str, str]
    tensors: dict[str, Any]
    data_start: int


def write(path: Path, tensors: Tensors, metadata: Mapping[str, str]) -> None:
    """Write all or nothing, see ``replacing``. Raises OSError."""
    with replacing(path) as file:
        _write(file, tensors, metadata)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside ``path``, for the owner alone, that takes its place in the end.

    After an error, OSError or another, ``path`` is as it was. A writer that is killed leaves a ``*.tmp`` file beside
    ``path``, which nobody reads.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def describe(tensors: Tensors) -> dict[str, Any]:
    """safetensors' description of each; offsets count from the end of the header."""
    entries, stop = {}, 0
    for name, tensor in tensors.items():
        start, stop = stop, stop + tensor.nbytes
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
    return entries


def open_file(path: Path) -> BinaryIO:
    """Open for reading; SnapshotError if that cannot be, or if it is no file: opening a FIFO would wait for ever."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise SnapshotError(f"{path}: not a file")
        return open(path, "rb")
    except OSError as error:
        raise SnapshotError(f"{path}: {error.strerror}") from error


def read_header(file: BinaryIO, path: Path, file_format: str) -> Header:
    """The header alone, and the file left at the first tensor. SnapshotError unless it is of ``file_format``."""
    size = os.fstat(file.fileno()).st_size
    length = _header_length(file, size, path)
    try:
        tensors = json.loads(file.read(length))
        metadata = {key: str(value) for key, value in tensors.pop("__metadata__").items()}
        ends = [int(entry["data_offsets"][1]) for entry in tensors.values()]
        written_by_us = "checksum" in metadata and "format" in metadata
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise SnapshotError(f"{path}: not a saved session, or its header is damaged") from error
    if not written_by_us or metadata["format"] != file_format:
        raise SnapshotError(f"{path}: not a file that this version can read as {file_format}")
    if 8 + length + max(ends, default=0) != size:
        raise SnapshotError(f"{path}: truncated or damaged")
    return Header(metadata, tensors, 8 + length)


def read_into(file: BinaryIO, header: Header, tensors: Tensors, path: Path) -> None:
    """Fill contiguous tensors from the file; SnapshotError unless every byte of it is as it was written."""
    if header.tensors != describe(tensors):
        raise SnapshotError(f"{path}: holds other tensors than this memory")
    digest = _digest_of_head(file, header)
    for tensor in tensors.values():
        for piece in _pieces(tensor):
            staged = piece if piece.device.type == "cpu" else torch.empty_like(piece, device="cpu")
            buffer = staged.numpy().data
            if file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
                raise SnapshotError(f"{path}: truncated")
            digest.update(buffer)
            if staged is not piece:
                piece.copy_(staged)
    _compare(digest.hexdigest(), header, path)


def verify(file: BinaryIO, header: Header, path: Path) -> None:
    """Raise SnapshotError unless every byte is as it was written."""
    digest = _digest_of_head(file, header)
    while piece := file.read(_PIECE_BYTES):
        digest.update(piece)
    _compare(digest.hexdigest(), header, path)


def _write(file: BinaryIO, tensors: Tensors, metadata: Mapping[str, str]) -> None:
    """The checksum is of the file with zeros in the checksum's place, where it is put in the end."""
    entries = {"__metadata__": {**metadata, "checksum": _NO_CHECKSUM}, **describe(tensors)}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    head = struct.pack("<Q", len(header)) + header
    digest = hashlib.sha256(head)
    file.write(head)
    for tensor in tensors.values():
        for piece in _pieces(tensor):
            data = piece.detach().cpu().numpy().data
            digest.update(data)
            file.write(data)
    file.seek(head.index(_NO_CHECKSUM.encode()))
    file.write(digest.hexdigest().encode())


def _header_length(file: BinaryIO, size: int, path: Path) -> int:
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 0 < length <= min(_MAX_HEADER_BYTES, size - 8):
        raise SnapshotError(f"{path}: truncated, or not a saved session")
    return int(length)


def _digest_of_head(file: BinaryIO, header: Header) -> Any:
    """A running SHA-256, the file left at the first tensor."""
    file.seek(0)
    head = file.read(header.data_start)
    return hashlib.sha256(head.replace(header.metadata["checksum"].encode(), _NO_CHECKSUM.encode(), 1))


def _compare(checksum: str, header: Header, path: Path) -> None:
    if checksum != header.metadata["checksum"]:
        raise SnapshotError(f"{path}: altered since it was saved (checksum)")


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Flat uint8 views of bounded size; of a tensor that is not contiguous, slice by slice."""
    if not tensor.is_contiguous():
        for part in tensor:
            yield from _pieces(part if part.dim() > 1 else part.contiguous())
    elif tensor.numel():
        yield from tensor.reshape(-1).view(torch.uint8).split(_PIECE_BYTES)


def _sync_folder(folder: Path) -> None:
    """So that the new name survives a crash too; not every system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
