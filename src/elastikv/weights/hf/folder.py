"""Hugging Face folders: single and sharded safetensors, read tensor by tensor.

A file is mapped only while one of its tensors is read, so that pages of tensors that were copied already do not
count as the process's memory for the rest of the loading.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from elastikv.errors import CorruptFile, ModelError
from elastikv.kernels.weights import PackedTensor
from elastikv.weights.hf.tokenizer import read_hf_tokenizer
from elastikv.weights.tokenizer import Tokenizer

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
# Where a vision-language checkpoint keeps its text model, and what the same tensor is called in a text-only one.
_TEXT_PREFIXES = (
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
)
_DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}


class HFFolder:
    """A ``TensorSource`` over a folder with safetensors.

    Raises ModelError where there are no weights, CorruptFile where a file is truncated.
    """

    def __init__(self, folder: Path) -> None:
        self.name = folder.resolve().name
        self._folder = folder
        self._files: dict[str, tuple[Path, str]] = {}
        self._nbytes: dict[str, int] = {}
        for file in _weight_files(folder):
            self._index(file)

    def names(self) -> Iterable[str]:
        return self._files.keys()

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def nbytes(self, name: str) -> int:
        return self._nbytes[name]

    def get(self, name: str) -> torch.Tensor:
        if name not in self._files:
            raise CorruptFile(f"{self.name}: the weights lack {name}")
        file, stored_name = self._files[name]
        try:
            with safe_open(file, framework="pt") as handle:
                return handle.get_tensor(stored_name)
        except SafetensorError as error:
            raise _corrupt(file, error) from None

    def get_packed(self, name: str) -> PackedTensor | None:
        return None

    def tokenizer(self, eos_token_ids: Sequence[int]) -> Tokenizer:
        return read_hf_tokenizer(self._folder, eos_token_ids)

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
                    self._files[name] = (file, stored_name)
                    n_values = torch.Size(part.get_shape()).numel()
                    self._nbytes[name] = n_values * _DTYPE_BYTES.get(part.get_dtype(), 1)
        except SafetensorError as error:
            raise _corrupt(file, error) from None


def _weight_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise CorruptFile(f"{index}: no valid index of shards ({error!r})") from None
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelError(f"{folder}: {len(missing)} of {len(names)} weight files are missing, such as {missing[0]}")
        return [folder / name for name in names]
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    raise ModelError(f"{folder}: this folder holds no weights ({_SINGLE} or {_INDEX})")


def _text_name(stored_name: str) -> str | None:
    """The tensor's name in a text-only checkpoint; None for a part that is not the text model."""
    for prefix, plain in _TEXT_PREFIXES:
        if stored_name.startswith(prefix):
            return plain + stored_name[len(prefix) :]
    if stored_name.startswith(("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")):
        return stored_name
    return None


def _corrupt(file: Path, error: Exception) -> CorruptFile:
    return CorruptFile(f"{file}: truncated or altered ({error})")
