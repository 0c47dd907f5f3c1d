"""From a tensor source to what a model computes with: fused, converted, packed, one tensor at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal

import torch

from elastikv.errors import CorruptFile, InvalidRequest
from elastikv.kernels import quants
from elastikv.kernels.weights import LinearWeights, PackedTensor, Weight
from elastikv.weights import own_memory
from elastikv.weights.base import TensorSource

DType = Literal["auto", "f32", "bf16", "f16"]
Progress = Callable[[int, int], None]

_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
_SAMPLE_BYTES = 4096


class WeightLoader:
    """Builds the parts of a model and counts what it read.

    config: the model's, as text, for the fingerprint. dtype: of dense matrices, ``"auto"`` as stored. quantize: a
    packed type for every matrix, ``"none"`` to unpack, None to take each as the file has it. device: of what it builds.
    progress is called with bytes read and bytes in all.
    """

    def __init__(
        self,
        source: TensorSource,
        config: str,
        *,
        dtype: str = "auto",
        quantize: str | None = None,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ) -> None:
        if dtype != "auto" and dtype not in _DTYPES:
            raise InvalidRequest(f"dtype must be auto, {' or '.join(_DTYPES)}, got {dtype!r}")
        if quantize not in (None, "none", *quants.TARGETS):
            raise InvalidRequest(f"quantize must be none, {' or '.join(quants.TARGETS)}, got {quantize!r}")
        self.source = source
        self._dtype = _DTYPES.get(dtype)
        self._quantize = quantize
        self.device = torch.device(device)
        self._progress = progress
        self._total = sum(source.nbytes(name) for name in source.names())
        self._done = 0
        self._digest = hashlib.sha256(f"{config}|{dtype}|{quantize}".encode())
        self.weight_bytes = 0

    @property
    def fingerprint(self) -> str:
        """Hex digest over the config, the formats asked for, and a sample of every tensor read so far."""
        return self._digest.hexdigest()

    def linear(
        self,
        names: Sequence[str],
        shape: tuple[int, int],
        *,
        bias: bool = False,
        order: torch.Tensor | None = None,
        exact: Sequence[str] = (),
    ) -> LinearWeights:
        """Matrices ``{name}.weight`` stacked by rows to ``shape``, with ``{name}.bias`` if asked.

        order: of the stacked rows, instead of the file's. exact: names that are never quantised, since
        they are few rows that much depends on.
        """
        weights = [self._matrix(f"{name}.weight", quantize=name not in exact) for name in names]
        self._check(", ".join(names), (sum(weight.shape[0] for weight in weights), weights[0].shape[1]), shape)
        biases = None
        if bias:
            pairs = zip(names, weights, strict=True)
            biases = torch.cat([self.vector(f"{name}.bias", (weight.shape[0],)) for name, weight in pairs])
        if order is not None:
            weights = _reorder(weights, order)
            biases = None if biases is None else biases[order]
        parts = []
        start = 0
        for weight in self._fuse(weights):
            stop = start + weight.shape[0]
            parts.append((weight, None if biases is None else biases[start:stop]))
            start = stop
        self.weight_bytes += sum(weight.nbytes for weight, _ in parts)
        return LinearWeights.of(parts)

    def matrix(self, name: str, shape: tuple[int, int]) -> Weight:
        """One matrix, such as the embedding's, ``{name}.weight``."""
        (weight,) = self._fuse([self._matrix(f"{name}.weight", quantize=True)])
        self._check(name, tuple(weight.shape), shape)
        self.weight_bytes += weight.nbytes
        return weight

    def vector(self, name: str, shape: tuple[int, ...], *, offset: float = 0.0) -> torch.Tensor:
        """A small tensor in f32, ``offset`` added."""
        vector = self._read_dense(name).float().add(offset).contiguous().to(self.device)
        self._check(name, tuple(vector.shape), shape)
        self.weight_bytes += vector.nbytes
        return vector

    def _matrix(self, name: str, *, quantize: bool) -> Weight:
        """Packed as asked for, or dense as stored, which may be the file's own memory."""
        packed = self.source.get_packed(name)
        if packed is not None:
            self._count(name, packed.data)
            return self._convert_packed(packed, self._target(packed.shape[1], quantize, stored=packed.type))
        dense = self._read_dense(name)
        target = self._target(dense.shape[1], quantize, stored=None)
        if target is not None:
            return PackedTensor(target, _shape(dense), quants.pack(dense, target))
        return dense

    def _fuse(self, weights: Sequence[Weight]) -> list[Weight]:
        """Neighbours of one format become one matrix, in the dtype asked for and in memory of its own."""
        groups: list[list[Weight]] = []
        for weight in weights:
            if groups and _format(groups[-1][0]) == _format(weight):
                groups[-1].append(weight)
            else:
                groups.append([weight])
        return [_stack(group, self._dtype, self.device) for group in groups]

    def _check(self, what: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
        if shape != wanted:
            found, asked = (" x ".join(map(str, each)) for each in (shape, wanted))
            raise CorruptFile(f"{self.source.name}: {what} is {found}, but the config says {asked}")

    def _target(self, n_in: int, quantize: bool, stored: str | None) -> str | None:
        """The packed type to hold a matrix in, None for dense. stored: how the file packs it."""
        if self._quantize is None:
            return stored
        if self._quantize == "none" or not quantize:
            return None
        block_values, _ = quants.block_sizes(self._quantize)
        return self._quantize if n_in % block_values == 0 else None

    def _convert_packed(self, packed: PackedTensor, target: str | None) -> Weight:
        if target is None:
            dense = torch.empty(packed.shape, dtype=self._dtype or torch.float32)
            return quants.unpack(packed.data, packed.type, dense)
        if target == packed.type:
            return packed
        return PackedTensor(target, packed.shape, quants.repack(packed.data, packed.type, target))

    def _read_dense(self, name: str) -> torch.Tensor:
        tensor = self.source.get(name)
        if not tensor.is_floating_point():
            raise CorruptFile(f"{self.source.name}: {name} holds {tensor.dtype}, not floating-point numbers")
        self._count(name, tensor)
        return tensor

    def _count(self, name: str, tensor: torch.Tensor) -> None:
        raw = tensor.flatten()[:_SAMPLE_BYTES].contiguous().view(torch.uint8)
        self._digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        self._digest.update(raw[:_SAMPLE_BYTES].numpy().tobytes())
        self._done += self.source.nbytes(name)
        if self._progress is not None:
            self._progress(self._done, self._total)


def _stack(weights: Sequence[Weight], dtype: torch.dtype | None, device: torch.device) -> Weight:
    """One above the other, all of one format; dense ones in ``dtype``, if given."""
    first = weights[0]
    shape = (sum(weight.shape[0] for weight in weights), first.shape[1])
    rows = [weight.data if isinstance(weight, PackedTensor) else weight for weight in weights]
    stacked = own_memory.empty((shape[0], rows[0].shape[1]), _stored_dtype(first, dtype), device)
    for part, source in zip(stacked.split([len(each) for each in rows]), rows, strict=True):
        part.copy_(source)
    return PackedTensor(first.type, shape, stacked) if isinstance(first, PackedTensor) else stacked


def _stored_dtype(weight: Weight, dtype: torch.dtype | None) -> torch.dtype:
    return torch.uint8 if isinstance(weight, PackedTensor) else dtype or weight.dtype


def _reorder(weights: Sequence[Weight], order: torch.Tensor) -> list[Weight]:
    """Rows of the stacked weights in another order: a piece for each run of rows from the same weight."""
    starts = torch.tensor([0, *(weight.shape[0] for weight in weights)]).cumsum(0)
    owners, lengths = torch.unique_consecutive(torch.bucketize(order, starts[1:], right=True), return_counts=True)
    runs = zip(owners.tolist(), order.split(lengths.tolist()), strict=True)
    return [_take(weights[owner], rows - starts[owner]) for owner, rows in runs]


def _take(weight: Weight, rows: torch.Tensor) -> Weight:
    if isinstance(weight, PackedTensor):
        return PackedTensor(weight.type, (len(rows), weight.shape[1]), weight.data[rows])
    return weight[rows]


def _format(weight: Weight) -> str:
    return weight.type if isinstance(weight, PackedTensor) else str(weight.dtype)


def _shape(matrix: torch.Tensor) -> tuple[int, int]:
    n_out, n_in = matrix.shape
    return n_out, n_in
