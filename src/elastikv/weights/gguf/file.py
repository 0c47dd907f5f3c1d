"""GGUF files, read tensor by tensor.

Bytes are read when asked for, and only those of one tensor: a packed tensor stays packed (``read_packed``) or is
unpacked a few rows at a time (``read``), so loading never holds a second copy of the model.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from elastikv.errors import CorruptFile, UnsupportedModel
from elastikv.kernels import quants
from elastikv.kernels.weights import PackedTensor
from elastikv.weights.gguf.header import GGUFHeader, StoredTensor, read_header
from elastikv.weights.gguf.tokenizer import end_tokens, read_gguf_tokenizer
from elastikv.weights.tokenizer import Tokenizer

ROPE_FREQS = "rope_freqs.weight"
"""Holds what llama3 scaling divides each frequency by; metadata does not tell of it."""

FALLBACK = "q8_0"
"""Other formats become this one when asked for packed."""

_DENSE = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_KEPT_PACKED = ("q8_0", "q4_0", "q4_k", "q5_k", "q6_k")


class GGUFFile:
    """Tensors as one GGUF file has them. Nothing stays open between reads.

    Raises CorruptFile where the file is truncated or no GGUF, UnsupportedModel where it is one of several.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header = read_gguf_header(path)
        if int(self.header.metadata.get("split.count", 1)) > 1:
            raise UnsupportedModel(f"{path} is one of several files; merge them with llama-gguf-split first")

    def read(self, tensor: StoredTensor) -> torch.Tensor:
        """Dense, in the file's dtype; f32 where the file packs it. Raises CorruptFile."""
        n_in = tensor.shape[-1]
        n_rows = math.prod(tensor.shape[:-1])
        if tensor.kind in _DENSE:
            return self._read_rows(tensor, 0, n_rows).view(_DENSE[tensor.kind]).reshape(tensor.shape)
        values = torch.empty((n_rows, n_in), dtype=torch.float32)
        for rows in quants.row_tiles(n_rows, n_in):
            quants.unpack(self._read_rows(tensor, rows.start, rows.stop), tensor.kind, out=values[rows])
        return values.reshape(tensor.shape)

    def read_packed(self, tensor: StoredTensor) -> PackedTensor | None:
        """A matrix's blocks, or None where it is dense. Raises CorruptFile.

        Formats other than those that ``PackedTensor`` names are repacked as q8_0, a few rows at a time.
        """
        if tensor.kind in _DENSE or len(tensor.shape) != 2:
            return None
        n_out, n_in = tensor.shape
        kind, data = tensor.kind, self._read_rows(tensor, 0, n_out)
        if kind not in _KEPT_PACKED:
            kind, data = FALLBACK, quants.repack(data, kind, FALLBACK)
        return PackedTensor(kind, (n_out, n_in), data)

    def rope_freqs(self) -> tuple[float, ...] | None:
        """What each RoPE frequency is divided by, if the file says it."""
        tensor = self.header.tensors.get(ROPE_FREQS)
        return None if tensor is None else tuple(self.read(tensor).tolist())

    def tokenizer(self, eos_token_ids: Sequence[int] | None = None) -> Tokenizer:
        """eos_token_ids: None for those of the file. Raises UnsupportedModel, or CorruptFile without a vocabulary."""
        ids = end_tokens(self.header) if eos_token_ids is None else eos_token_ids
        return read_gguf_tokenizer(self.path, self.header, ids)

    def refuse_unknown_types(self, names: Iterable[str]) -> None:
        """Raise UnsupportedModel if one of these tensors is of a type that nothing here reads."""
        kinds = {self.header.tensors[name].kind: name for name in names}
        for kind, name in kinds.items():
            if kind not in _DENSE and not quants.can_unpack(kind):
                raise UnsupportedModel(
                    f"{self.path}: {name} has tensor type {kind.upper()}, which is not supported; "
                    f"supported: {', '.join((*_DENSE, *_KEPT_PACKED)).upper()} and what else the gguf package unpacks"
                )

    def _read_rows(self, tensor: StoredTensor, start: int, stop: int) -> torch.Tensor:
        """Rows ``[start, stop)`` as stored: uint8 ``[n_rows, row_bytes]``, in memory of their own."""
        row_bytes = quants.row_bytes(tensor.kind, tensor.shape[-1])
        n_bytes = (stop - start) * row_bytes
        data = np.fromfile(self.path, dtype=np.uint8, count=n_bytes, offset=tensor.offset + start * row_bytes)
        if len(data) != n_bytes:
            raise CorruptFile(f"{self.path} is truncated: {tensor.name} has {len(data)} of {n_bytes} bytes")
        return torch.from_numpy(data).reshape(stop - start, row_bytes)


def read_gguf_header(path: Path) -> GGUFHeader:
    """What stands before the tensors, of one file or the first of several. Raises CorruptFile, UnsupportedModel."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise CorruptFile(f"{path} is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return read_header(path, data)
