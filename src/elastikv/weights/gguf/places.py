"""How a Hugging Face checkpoint lies in a GGUF: where each tensor is, what was changed on the way, and that undone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
from typing_extensions import override

from elastikv.errors import CorruptFile
from elastikv.kernels import quants
from elastikv.kernels.weights import PackedTensor
from elastikv.weights.base import TensorSource
from elastikv.weights.gguf.file import FALLBACK, GGUFFile
from elastikv.weights.gguf.header import StoredTensor
from elastikv.weights.tokenizer import Tokenizer

_EXPERT = re.compile(r"\.experts\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class ValueMap:
    """An elementwise change of values, and its inverse. Both take and give f32."""

    store: Callable[[torch.Tensor], torch.Tensor]
    restore: Callable[[torch.Tensor], torch.Tensor]


PLUS_ONE = ValueMap(lambda x: x + 1, lambda x: x - 1)
NEGATIVE_EXP = ValueMap(lambda x: -torch.exp(x), lambda x: torch.log(-x))


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What a converter does to a tensor.

    row_order, column_order: int64; index i of the stored tensor is index ``order[i]`` of the original.
    squeezed: the dimension, of size 1, that was dropped.
    """

    row_order: torch.Tensor | None = None
    column_order: torch.Tensor | None = None
    values: ValueMap | None = None
    squeezed: int | None = None

    def undo(self, stored: torch.Tensor) -> torch.Tensor:
        """From what the GGUF holds to the original; floats stay in their dtype unless values changed."""
        if self.values is not None:
            stored = self.values.restore(stored.float())
        if self.row_order is not None:
            stored = stored[torch.argsort(self.row_order)]
        if self.column_order is not None:
            stored = stored[:, torch.argsort(self.column_order)]
        return stored if self.squeezed is None else stored.unsqueeze(self.squeezed)


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a Hugging Face tensor lies in a GGUF, and how it was changed on the way.

    expert: whose it is, where the stored tensor has those of all experts, one above the other.
    """

    gguf_name: str
    change: Change
    expert: int | None = None


def find_places(
    architecture: str,
    n_layers: int,
    names: Iterable[str],
    aliases: Mapping[str, str],
    change_of: Callable[[str], Change],
) -> dict[str, Place]:
    """Places in a GGUF of those of ``names`` that it knows.

    aliases: endings of names that the gguf package knows by another one.
    """
    (key,) = (key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    known, found = get_tensor_name_map(key, n_layers), {}
    for name in names:
        alias = next((name.removesuffix(old) + new for old, new in aliases.items() if name.endswith(old)), name)
        expert = _EXPERT.search(alias)
        gguf_name = known.get_name(_EXPERT.sub(".experts.", alias), try_suffixes=(".weight", ".bias"))
        if gguf_name is not None:
            found[name] = Place(gguf_name, change_of(name), int(expert[1]) if expert else None)
    return found


class PlacedTensors(TensorSource):
    """The tensors of a GGUF, named, shaped and valued as in the checkpoint they came from.

    Raises UnsupportedModel for tensor types that nothing here reads.
    """

    def __init__(self, file: GGUFFile, places: Mapping[str, Place]) -> None:
        self.name = file.header.name
        self._file = file
        stored = {name: (place.change, _find(file.header.tensors, place)) for name, place in places.items()}
        self._stored = {name: (change, tensor) for name, (change, tensor) in stored.items() if tensor is not None}
        file.refuse_unknown_types(tensor.name for _, tensor in self._stored.values())

    @override
    def names(self) -> Iterable[str]:
        return self._stored.keys()

    @override
    def __contains__(self, name: str) -> bool:
        return name in self._stored

    @override
    def nbytes(self, name: str) -> int:
        return self._find(name)[1].nbytes

    @override
    def get(self, name: str) -> torch.Tensor:
        """The tensor, dense, in the file's dtype; f32 where the file packs it."""
        change, tensor = self._find(name)
        return change.undo(self._file.read(tensor)).contiguous()

    @override
    def get_packed(self, name: str) -> PackedTensor | None:
        """The tensor's blocks, or None where it is stored dense.

        Formats other than those that ``PackedTensor`` names are repacked as q8_0, a few rows at a time, and so are
        columns whose order cuts through blocks.
        """
        change, tensor = self._find(name)
        packed = self._file.read_packed(tensor)
        if packed is None:
            return None
        kind, data = packed.type, packed.data
        if change.row_order is not None:
            data = data[torch.argsort(change.row_order)]
        if change.column_order is not None:
            kind, data = _reorder_columns(data, kind, torch.argsort(change.column_order))
        return PackedTensor(kind, packed.shape, data)

    @override
    def tokenizer(self, eos_token_ids: Sequence[int]) -> Tokenizer:
        return self._file.tokenizer(eos_token_ids)

    @override
    def close(self) -> None:
        """Nothing stays open between reads."""

    def _find(self, name: str) -> tuple[Change, StoredTensor]:
        if name not in self._stored:
            raise CorruptFile(f"{self._file.path}: the file lacks {name}")
        return self._stored[name]


def _find(tensors: Mapping[str, StoredTensor], place: Place) -> StoredTensor | None:
    """What is stored at a place, or None where the file does not have it."""
    name, expert = place.gguf_name, place.expert
    stored, part, n_parts = tensors.get(name), 0, 1
    if stored is None and expert is not None:  # gate and up may be in one tensor, in each expert's rows
        fused = name.replace("ffn_gate_exps", "ffn_gate_up_exps").replace("ffn_up_exps", "ffn_gate_up_exps")
        stored, part, n_parts = tensors.get(fused), int("ffn_up_exps" in name), 2
    if stored is None or expert is None:
        return stored
    n_experts = stored.shape[0]
    return stored.piece(expert * n_parts + part, n_experts * n_parts) if expert < n_experts else None


def _reorder_columns(data: torch.Tensor, kind: str, order: torch.Tensor) -> tuple[str, torch.Tensor]:
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
    packed = torch.empty((data.shape[0], quants.row_bytes(FALLBACK, len(order))), dtype=torch.uint8)
    for rows in quants.row_tiles(data.shape[0], len(order)):
        packed[rows] = quants.pack(quants.unpack(data[rows], kind)[:, order], FALLBACK)
    return FALLBACK, packed
