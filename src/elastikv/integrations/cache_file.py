"""A prompt cache on disk: a safetensors file that is written, and read, one tensor at a time.

The header's metadata says for which model the file is and what each layer held; ``crc32`` is of
header and tensors. Only what a layer still needs is written: no spare capacity, no rows that its window has passed.
"""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from safetensors import safe_open

from elastikv.errors import SnapshotError
from elastikv.models.config_identity import config_digest

if TYPE_CHECKING:
    from elastikv.integrations.transformers_cache import ElasticCache

_FORMAT = "elastikv prompt cache 1"
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
}
_NO_CRC = "0" * 8
_CRC_KEY = b'"crc32": "'
_PIECE_BYTES = 1 << 20


def write_cache_file(path: Path, cache: ElasticCache) -> None:
    """Write beside ``path``, then rename: a file of this name is always whole. OSError: ``path`` is as it was."""
    named: dict[str, torch.Tensor] = {}
    layers = []
    for index, member in enumerate(cache.memory.members):
        facts, tensors = member.snapshot()
        layers.append({**facts, "tensors": list(tensors)})
        named.update({f"{index}.{name}": tensor for name, tensor in tensors.items()})
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            _write(file, named, {"fingerprint": config_digest(cache.config), "layers": json.dumps(layers)})
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _write(file: BinaryIO, named: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": _FORMAT, **metadata, "crc32": _NO_CRC}}
    stop = 0
    for name, tensor in named.items():
        start, stop = stop, stop + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, stop]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    crc = zlib.crc32(text)
    for tensor in named.values():
        for piece in _pieces(tensor):
            crc = zlib.crc32(piece, crc)
            file.write(piece)
    # The sum is known only now; it takes the place that was held for it.
    file.seek(8 + text.index(_CRC_KEY) + len(_CRC_KEY))
    file.write(f"{crc:08x}".encode())


def _pieces(tensor: torch.Tensor) -> Iterator[memoryview]:
    """The tensor's bytes, head by head, so that no second copy of a layer is made."""
    heads = tensor.flatten(0, 1) if tensor.dim() == 4 else tensor
    for head in heads:
        yield memoryview(head.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def read_cache_file(path: Path, cache: ElasticCache, device: torch.device) -> None:
    """Fill an empty cache. SnapshotError, CacheFull: it is empty again."""
    _verify(path)
    with safe_open(path, framework="pt", device=str(device)) as file:
        metadata = file.metadata()
        if metadata["fingerprint"] != config_digest(cache.config):
            raise SnapshotError(f"{path} was saved for another model than this {cache.config.model_type}")
        try:
            for index, (member, facts) in enumerate(
                zip(cache.memory.members, json.loads(metadata["layers"]), strict=True)
            ):
                member.restore(facts, {name: file.get_tensor(f"{index}.{name}") for name in facts["tensors"]})
        except BaseException:
            cache.reset()
            raise


def _verify(path: Path) -> None:
    """SnapshotError unless the file is one of ours and every byte is what was written."""
    with path.open("rb") as file:
        n_header = int.from_bytes(file.read(8), "little")
        text = file.read(n_header) if n_header <= path.stat().st_size else b""
        if f'"format": "{_FORMAT}"'.encode() not in text:
            raise SnapshotError(f"{path} is not a prompt cache that this version can read")
        start = text.index(_CRC_KEY) + len(_CRC_KEY)
        written = text[start : start + len(_NO_CRC)]
        crc = zlib.crc32(text[:start] + _NO_CRC.encode() + text[start + len(_NO_CRC) :])
        while piece := file.read(_PIECE_BYTES):
            crc = zlib.crc32(piece, crc)
    if f"{crc:08x}".encode() != written:
        raise SnapshotError(f"{path} is truncated or was altered: its checksum does not fit its contents")
