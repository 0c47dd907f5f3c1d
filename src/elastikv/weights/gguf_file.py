"""GGUF files as a source of tensors: named, shaped and valued as in the Hugging Face checkpoint they came from.

Bytes are read when asked for, and only those of one tensor: a packed tensor stays packed (``get_packed``) or is
unpacked a few rows at a time (``get``), so loading never holds a second copy of the model.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from elastikv.errors import CorruptFile, UnsupportedModel
from elastikv.kernels import quants
from elastikv.kernels.weights import PackedTensor
from elastikv.weights import gguf_config
from elastikv.weights.gguf_header import GGUFHeader, StoredTensor, read_header
from elastikv.weights.gguf_layout import Place, places
from elastikv.weights.gguf_tokenizer import read_gguf_tokenizer
from elastikv.weights.tokenizer import Tokenizer

_DENSE = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_KEPT_PACKED = ("q8_0", "q4_0", "q4_k", "q5_k", "q6_k")
_FALLBACK = "q8_0"
"""Other formats become this one when asked for packed, as do columns whose order cuts through blocks."""


class GGUFFile:
    """A ``TensorSource`` over one GGUF file.

    Raises CorruptFile where the file is truncated or no GGUF, UnsupportedModel for architectures and tensor types
    that nothing here reads.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = _read_header(path)
        if int(self.header.metadata.get("split.count", 1)) > 1:
            raise UnsupportedModel(f"{path} is one of several files; merge them with llama-gguf-split first")
        self.config = gguf_config.read_config(path, self.header, self._rope_freqs())
        stored = self.header.tensors
        self._places = {name: place for name, place in places(self.config).items() if place.gguf_name in stored}
        self._refuse_unknown_types()

    def names(self) -> Iterable[str]:
        return self._places.keys()

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def nbytes(self, name: str) -> int:
        return self._find(name)[1].nbytes

    def get(self, name: str) -> torch.Tensor:
        """The tensor, dense, in the file's dtype; f32 where the file packs it."""
        place, tensor = self._find(name)
        return place.restore(self._read_dense(tensor)).contiguous()

    def get_packed(self, name: str) -> PackedTensor | None:
        """The tensor's blocks, or None where it is stored dense.

        Formats other than those that ``PackedTensor`` names are repacked as q8_0, a few rows at a time.
        """
        place, tensor = self._find(name)
        if tensor.kind in _DENSE or len(tensor.shape) != 2:
            return None
        n_out, n_in = tensor.shape
        kind, data = tensor.kind, self._read_rows(tensor, 0, n_out)
        if kind not in _KEPT_PACKED:
            kind, data = _FALLBACK, quants.repack(data, kind, _FALLBACK)
        if place.row_order is not None:
            data = data[torch.argsort(place.row_order)]
        if place.column_order is not None:
            kind, data = _restore_columns(data, kind, torch.argsort(place.column_order))
        return PackedTensor(kind, (n_out, n_in), data)

    def tokenizer(self) -> Tokenizer:
        return read_gguf_tokenizer(self.path, self.header, self.config.eos_token_ids)

    def close(self) -> None:
        """Nothing stays open between reads."""

    def _find(self, name: str) -> tuple[Place, StoredTensor]:
        if name not in self._places:
            raise CorruptFile(f"{self.path}: the file lacks {name}")
        place = self._places[name]
        return place, self.header.tensors[place.gguf_name]

    def _rope_freqs(self) -> tuple[float, ...] | None:
        tensor = self.header.tensors.get(gguf_config.ROPE_FREQS)
        return None if tensor is None else tuple(self._read_dense(tensor).tolist())

    def _refuse_unknown_types(self) -> None:
        kinds = {self.header.tensors[place.gguf_name].kind: place.gguf_name for place in self._places.values()}
        for kind, name in kinds.items():
            if kind not in _DENSE and not quants.can_unpack(kind):
                raise UnsupportedModel(
                    f"{self.path}: {name} has tensor type {kind.upper()}, which is not supported; "
                    f"supported: {', '.join((*_DENSE, *_KEPT_PACKED)).upper()} and what else the gguf package unpacks"
                )

    def _read_dense(self, tensor: StoredTensor) -> torch.Tensor:
        n_in = tensor.shape[-1]
        n_rows = math.prod(tensor.shape[:-1])
        if tensor.kind in _DENSE:
            return self._read_rows(tensor, 0, n_rows).view(_DENSE[tensor.kind]).reshape(tensor.shape)
        values = torch.empty((n_rows, n_in), dtype=torch.float32)
        for rows in quants.row_tiles(n_rows, n_in):
            quants.unpack(self._read_rows(tensor, rows.start, rows.stop), tensor.kind, out=values[rows])
        return values.reshape(tensor.shape)

    def _read_rows(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        """Rows ``[start, stop)`` as stored: uint8 ``[n_rows, row_bytes]``, in memory of their own."""
        row_bytes = quants.row_bytes(tensor.kind, tensor.shape[-1])
        n_bytes = (stop - start) * row_bytes
        data = np.fromfile(self.path, dtype=np.uint8, count=n_bytes, offset=tensor.offset + start * row_bytes)
        if len(data) != n_bytes:
            raise CorruptFile(f"{self.path} is truncated: {tensor.name} has {len(data)} of {n_bytes} bytes")
        return torch.from_numpy(data).reshape(stop - start, row_bytes)


def _read_header(path: Path) -> GGUFHeader:
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise CorruptFile(f"{path} is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return read_header(path, data)


def _restore_columns(data: torch.Tensor, kind: str, order: torch.Tensor) -> tuple[str, torch.Tensor]:
    """Columns in another order: whole blocks where the order allows it, else through values."""
    n_values, n_bytes = quants.block_sizes(kind)
    groups = order.reshape(-1, n_values) if len(order) % n_values == 0 else order[None]
    first = groups[:, :1]
    if (
        groups.shape[1] == n_values
        and torch.equal(groups, first + torch.arange(n_values))
        and not (first % n_values).any()
    ):
        blocks = data.reshape(data.shape[0], -1, n_bytes)[:, first[:, 0] // n_values]
        return kind, blocks.reshape(data.shape)
    packed = torch.empty((data.shape[0], quants.row_bytes(_FALLBACK, len(order))), dtype=torch.uint8)
    for rows in quants.row_tiles(data.shape[0], len(order)):
        packed[rows] = quants.pack(quants.unpack(data[rows], kind)[:, order], _FALLBACK)
    return _FALLBACK, packed
