"""A sequence to a file and back.

The file (see ``checked_file``) holds ``token_ids``, then what memory says that a sequence consists of: of ours, the
used rows of every plane of every attention layer, and the states of every recurrent layer. Its metadata names the
model (fingerprint) and the layout.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from elastikv.errors import InvalidRequest, SnapshotError
from elastikv.memory import checked_file
from elastikv.memory.base import Memory, SavedSequence

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
    n_tokens = memory.n_tokens(seq_id)
    if not n_tokens:
        raise InvalidRequest(f"sequence {seq_id} is empty; there is nothing to save")
    metadata = {
        "format": _FORMAT,
        "fingerprint": fingerprint,
        "layout": _layout(memory),
        "n_tokens": str(n_tokens),
        "n_prompt": str(len(token_ids) if n_prompt is None else n_prompt),
        "first": str(memory.seq_pos_min(seq_id)),
    }
    checked_file.write(Path(path), {**_ids(token_ids), **memory.seq_tensors(seq_id)}, metadata)


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

        def fill(tensors: dict[str, torch.Tensor]) -> None:
            checked_file.read_into(file, header.file, {**_ids(header.token_ids), **tensors}, path)

        try:
            memory.seq_load(seq_id, SavedSequence(header.n_tokens, header.first, _shapes(header.file)), fill)
        except ValueError as error:
            raise SnapshotError(f"{path}: {error}") from error
    return header


def _layout(memory: Memory) -> str:
    return json.dumps(memory.layout, separators=(",", ":"))


def _ids(token_ids: Sequence[int]) -> dict[str, torch.Tensor]:
    return {"token_ids": torch.tensor(list(token_ids), dtype=torch.int64)}


def _shapes(file: checked_file.Header) -> dict[str, tuple[int, ...]]:
    try:
        return {name: tuple(map(int, entry["shape"])) for name, entry in file.tensors.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("a tensor's shape is missing or malformed") from error


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
