"""A GGUF's header: metadata and the table of tensors.

The `gguf` package has a reader too, but it makes numpy objects for every token of the vocabulary: some
seconds for the 150,000 of a Qwen file, where walking the bytes takes a fraction of one.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType

from elastikv.errors import CorruptFile, InvalidRequest, UnsupportedModel
from elastikv.kernels.quants import row_bytes

_VERSIONS = (2, 3)
_MAX_DIMS = 4
_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor's bytes are.

    shape: outermost dimension first; kind: ``"f32"``, ``"q8_0"``, ...; offset: from the start of the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int
    nbytes: int

    def piece(self, index: int, count: int) -> StoredTensor:
        """A matrix: one of ``count`` equal shares of the rows. Raises CorruptFile where they cannot be shared out."""
        n_rows = math.prod(self.shape[:-1])
        if n_rows % count:
            raise CorruptFile(f"{self.name} has {n_rows} rows, which are not those of {count} matrices")
        n_bytes = self.nbytes // count
        shape = (n_rows // count, self.shape[-1])
        return StoredTensor(self.name, shape, self.kind, self.offset + index * n_bytes, n_bytes)


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """What is in front of the tensors' data.

    metadata: scalars, strings, numpy arrays of numbers, lists of bytes (arrays of strings, not decoded).
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]

    @property
    def name(self) -> str:
        """The model's name in the metadata, else the file's."""
        return str(self.metadata.get("general.name", self.path.stem))

    @property
    def architecture(self) -> str:
        """``general.architecture``; empty if the file does not have it."""
        return str(self.metadata.get("general.architecture", ""))

    def required(self, key: str) -> Any:
        """The value of ``<architecture>.<key>``. Raises CorruptFile where there is none."""
        try:
            return self.metadata[f"{self.architecture}.{key}"]
        except KeyError as error:
            raise CorruptFile(f"{self.path}: metadata lacks {error.args[0]}") from None

    def of_architecture(self, key: str, default: Any = None) -> Any:
        """The value of ``<architecture>.<key>``, or the default."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def has_tensor(self, suffix: str) -> bool:
        """Whether any layer has a tensor whose name ends so, such as ``"attn_q.bias"``."""
        return any(name.endswith(f".{suffix}") for name in self.tensors)

    def strings(self, key: str) -> list[str]:
        """An array of strings, decoded; broken UTF-8 is replaced, since some vocabularies hold parts of characters."""
        return [text.decode("utf-8", errors="replace") for text in self.metadata.get(key, ())]


def read_header(path: Path, data: mmap.mmap) -> GGUFHeader:
    """Parse and check a header.

    Raises CorruptFile where it, or a tensor's data, is truncated; UnsupportedModel for versions and types not known.
    """
    cursor = _Cursor(data)
    try:
        if cursor.take(4) != b"GGUF":
            raise CorruptFile(f"{path} is not a GGUF file")
        version = cursor.scalar("I")
        if version not in _VERSIONS:
            raise UnsupportedModel(f"{path}: GGUF version {version} is not supported (2 and 3, little endian, are)")
        n_tensors, n_entries = cursor.scalar("Q"), cursor.scalar("Q")
        metadata = {cursor.string().decode(): cursor.value() for _ in range(n_entries)}
        infos = [_tensor_info(path, cursor) for _ in range(n_tensors)]
        alignment = int(metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT))
        if alignment < 1:
            raise _BadHeader(f"alignment {alignment}")
    except (struct.error, UnicodeDecodeError, InvalidRequest, _BadHeader) as error:
        raise CorruptFile(f"{path} is truncated or altered: its header cannot be read ({error})") from error
    start = math.ceil(cursor.position / alignment) * alignment
    tensors = {name: StoredTensor(name, shape, kind, start + at, size) for name, shape, kind, at, size in infos}
    for tensor in tensors.values():
        end = tensor.offset + tensor.nbytes
        if end > len(data):
            raise CorruptFile(f"{path} is truncated: {tensor.name} ends at byte {end}, the file at {len(data)}")
    return GGUFHeader(path, metadata, tensors)


class _BadHeader(Exception):
    """Something that no sound header holds."""


class _Cursor:
    """Reads little-endian values one after the other; ``struct.error`` behind the end."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self.position = 0

    def take(self, n_bytes: int) -> bytes:
        taken = self._data[self.position : self.position + n_bytes]
        if len(taken) < n_bytes:
            raise _BadHeader("it ends early")
        self.position += n_bytes
        return taken

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._data, self.position)
        self.position += struct.calcsize(f"<{code}")
        return value

    def string(self) -> bytes:
        return self.take(self.scalar("Q"))

    def value(self) -> Any:
        kind = self._value_type()
        if kind == GGUFValueType.STRING:
            return self.string().decode()
        if kind != GGUFValueType.ARRAY:
            return self.scalar(_SCALARS[kind])
        kind, length = self._value_type(), self.scalar("Q")
        if kind == GGUFValueType.STRING:
            return [self.string() for _ in range(length)]
        if kind == GGUFValueType.ARRAY:
            raise _BadHeader("an array of arrays")
        dtype = np.dtype(f"<{_SCALARS[kind]}")
        return np.frombuffer(self.take(length * dtype.itemsize), dtype=dtype)

    def _value_type(self) -> GGUFValueType:
        number = self.scalar("I")
        try:
            return GGUFValueType(number)
        except ValueError:
            raise _BadHeader(f"value type {number}") from None


def _tensor_info(path: Path, cursor: _Cursor) -> tuple[str, tuple[int, ...], str, int, int]:
    """Name, shape, kind, offset into the data, bytes."""
    name = cursor.string().decode()
    n_dims = cursor.scalar("I")
    if not 1 <= n_dims <= _MAX_DIMS:
        raise _BadHeader(f"{name} has {n_dims} dimensions")
    shape = tuple(reversed([cursor.scalar("Q") for _ in range(n_dims)]))
    number, offset = cursor.scalar("I"), cursor.scalar("Q")
    try:
        kind = GGMLQuantizationType(number).name.lower()
    except ValueError:
        raise UnsupportedModel(f"{path}: {name} has tensor type {number}, which is not known") from None
    if 0 in shape:
        raise _BadHeader(f"{name} is empty")
    return name, shape, kind, offset, math.prod(shape[:-1]) * row_bytes(kind, shape[-1])
