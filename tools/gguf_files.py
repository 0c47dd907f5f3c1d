"""Copies of GGUF files with other metadata or other tensors, and random blocks of the types that nothing here packs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.constants import GGMLQuantizationType

from elastikv.kernels import quants

K_QUANTS = ("q4_k", "q5_k", "q6_k")
_SCALE_OFFSETS = {"q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,)}
"""Where a block keeps its 16-bit scales; every other byte may be anything."""


def random_blocks(kind: str, n_out: int, n_in: int, seed: int = 0) -> np.ndarray:
    """A valid packed matrix, uint8 ``[n_out, row_bytes]``, with weights of about ``n_in ** -0.5``."""
    generator = np.random.default_rng(seed)
    block_values, block_bytes = quants.block_sizes(kind)
    blocks = generator.integers(0, 256, (n_out * n_in // block_values, block_bytes), dtype=np.uint8)
    # Sub-scales and quants reach 63 and 15 (q4_k), 63 and 31 (q5_k), 127 and 32 (q6_k).
    largest = {"q4_k": 300.0, "q5_k": 600.0, "q6_k": 1300.0}[kind]
    scale = np.float16(n_in**-0.5 / largest)
    for offset in _SCALE_OFFSETS[kind]:
        blocks[:, offset : offset + 2] = np.frombuffer(scale.tobytes(), dtype=np.uint8)
    return blocks.reshape(n_out, -1)


def rewrite(
    source: Path,
    out: Path,
    *,
    metadata: Mapping[str, Any] | None = None,
    without: Collection[str] = (),
    tensor: Callable[[str, np.ndarray], tuple[np.ndarray, str] | None] = lambda name, data: None,
    tensors: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = lambda tensors: tensors,
) -> Path:
    """Copy a GGUF.

    ``metadata`` replaces values by key, ``without`` drops keys, ``tensors`` gives other tensors by name, ``tensor``
    another tensor's bytes and their type.
    """
    reader = GGUFReader(source)
    changed = dict(metadata or {})
    architecture = changed.pop("general.architecture", reader.fields["general.architecture"].contents())
    writer = GGUFWriter(out, architecture)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or key in without:
            continue
        array = field.types[0] == GGUFValueType.ARRAY
        value = changed.pop(key, field.contents())
        writer.add_key_value(key, value, field.types[0], sub_type=field.types[-1] if array else None)
    for key, value in changed.items():
        writer.add_key_value(key, value, GGUFValueType.UINT32)
    kinds = {entry.name: entry.tensor_type for entry in reader.tensors}
    for name, data in tensors({entry.name: entry.data for entry in reader.tensors}).items():
        replaced = tensor(name, data)
        if replaced is None:
            writer.add_tensor(name, np.array(data), raw_dtype=kinds.get(name))
        else:
            writer.add_tensor(name, replaced[0], raw_dtype=GGMLQuantizationType[replaced[1].upper()])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out
