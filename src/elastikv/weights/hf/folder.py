"""Hugging Face folders: single and sharded safetensors, read tensor by tensor.

A file is mapped only while one of its tensors is read, so that pages of tensors that were copied already do not
count as the process's memory for the rest of the loading.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from typing_extensions import override

from elastikv.errors import CorruptFile, ModelError
from elastikv.kernels.weights import PackedTensor
from elastikv.weights.base import TensorSource
from elastikv.weights.folders import INDEX, SINGLE, folder_name, weight_names
from elastikv.weights.hf.tokenizer import read_hf_tokenizer
from elastikv.weights.tokenizer import Tokenizer

# Where a vision-language checkpoint keeps its text model, and what the same tensor is called in a text-only one.
_TEXT_PREFIXES = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
_FUSED_EXPERTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""Matrices that a tensor of all experts has of each, one above the other."""
_DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}

_Piece = tuple[int, slice]
"""An index into a tensor: an expert, and rows of its matrix."""


class HFFolder(TensorSource):
    """The tensors of a folder with safetensors.

    Raises ModelError where there are no weights, CorruptFile where a file is truncated.
    """

    def __init__(self, folder: Path) -> None:
        self.name = folder_name(folder)
        self._folder = folder
        self._files: dict[str, tuple[Path, str, _Piece | None]] = {}
        self._nbytes: dict[str, int] = {}
        for file in _weight_files(folder):
            self._index(file)

    @override
    def names(self) -> Iterable[str]:
        return self._files.keys()

    @override
    def __contains__(self, name: str) -> bool:
        return name in self._files

    @override
    def nbytes(self, name: str) -> int:
        return self._nbytes[name]

    @override
    def get(self, name: str) -> torch.Tensor:
        if name not in self._files:
            raise CorruptFile(f"{self.name}: the weights lack {name}")
        file, stored_name, piece = self._files[name]
        try:
            with safe_open(file, framework="pt") as handle:
                tensor: torch.Tensor
                tensor = handle.get_tensor(stored_name) if piece is None else handle.get_slice(stored_name)[piece]
                return tensor
        except SafetensorError as error:
            raise _corrupt(file, error) from None

    @override
    def get_packed(self, name: str) -> PackedTensor | None:
        return None

    @override
    def tokenizer(self, eos_token_ids: Sequence[int]) -> Tokenizer:
        return read_hf_tokenizer(self._folder, eos_token_ids)

    @override
    def close(self) -> None:
        """Nothing stays open between reads."""

    def _index(self, file: Path) -> None:
        try:
            with safe_open(file, framework="pt") as handle:
                for stored_name in handle.keys():  # noqa: SIM118, not a mapping
                    name = _text_name(stored_name)
                    if name is None:
                        continue
                    part = handle.get_slice(stored_name)
                    n_bytes = torch.Size(part.get_shape()).numel() * _DTYPE_BYTES.get(part.get_dtype(), 1)
                    pieces = _pieces(name, part.get_shape()) or {name: None}
                    for piece_name, piece in pieces.items():
                        self._files[piece_name] = (file, stored_name, piece)
                        self._nbytes[piece_name] = n_bytes // len(pieces)
        except SafetensorError as error:
            raise _corrupt(file, error) from None


def _weight_files(folder: Path) -> list[Path]:
    names = weight_names(folder)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing == [SINGLE]:
        raise ModelError(f"{folder}: this folder holds no weights ({SINGLE} or {INDEX})")
    if missing:
        raise ModelError(f"{folder}: {len(missing)} of {len(names)} weight files are missing, such as {missing[0]}")
    return [folder / name for name in names]


def _text_name(stored_name: str) -> str | None:
    """The tensor's name in a text-only checkpoint; None for a part that is not the text model."""
    for prefix, plain in _TEXT_PREFIXES:
        if stored_name.startswith(prefix):
            return plain + stored_name[len(prefix) :]
    if stored_name.startswith(("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")):
        return stored_name
    return None


def _pieces(name: str, shape: Sequence[int]) -> dict[str, _Piece | None]:
    """Where matrices of experts are in a tensor of all experts, by the names that they have in tensors of their own.

    Nothing if it is another tensor.
    """
    prefix, is_experts, stored = name.removesuffix(".weight").rpartition(".experts.")
    parts = _FUSED_EXPERTS.get(stored, ())
    if not is_experts or not parts or len(shape) != 3:
        return {}
    height = shape[1] // len(parts)
    return {
        f"{prefix}.experts.{expert}.{part}.weight": (expert, slice(index * height, (index + 1) * height))
        for expert in range(shape[0])
        for index, part in enumerate(parts)
    }


def _corrupt(file: Path, error: Exception) -> CorruptFile:
    return CorruptFile(f"{file}: truncated or altered ({error})")
