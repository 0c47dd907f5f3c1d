"""A Hugging Face folder as a GGUF file that llama.cpp runs: ``python -m tools.gguf_export FOLDER OUT``.

For tests and for measuring side by side on the very same weights. Tensors are read, changed, packed and written one
by one. As in llama.cpp's converter, vectors, norms, convolutions and routers stay f32; matrices whose rows the wanted
blocks do not divide become f16.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from gguf import GGML_QUANT_VERSION, GGMLQuantizationType, GGUFWriter, LlamaFileType

from elastikv.errors import InvalidRequest, UnsupportedModel
from elastikv.kernels import quants
from elastikv.models.checkpoint import open_checkpoint
from elastikv.models.config import ModelConfig
from elastikv.weights.base import TensorSource
from elastikv.weights.gguf import Change, Place
from elastikv.weights.gguf.file import ROPE_FREQS
from elastikv.weights.hf import read_hf_config
from tools.gguf_export.config import rope_freq_factors, write_config
from tools.gguf_export.vocab import write_vocab

FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
}
_FLOATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_ALWAYS_F32 = ("norm.weight", "conv1d.weight", "mlp.gate.weight")


def export_gguf(folder: Path | str, out_path: Path | str, file_type: str = "f32") -> Path:
    """Write the model in ``folder`` to ``out_path``, which appears when it is complete. Returns ``out_path``.

    file_type: ``"f32"``, ``"f16"``, ``"bf16"``, ``"q8_0"`` or ``"q4_0"``; of matrices, embeddings included.
    """
    if file_type not in FILE_TYPES:
        raise InvalidRequest(f"cannot write {file_type!r} files; choose one of {', '.join(FILE_TYPES)}")
    checkpoint = open_checkpoint(folder)
    architecture, config, source = checkpoint.architecture, checkpoint.config, checkpoint.tensors
    stored = {name: place for name, place in architecture.places(config).items() if name in source}
    if config.tie_embeddings:
        stored.pop("lm_head.weight", None)
    homeless = set(source.names()) - set(stored) - {"lm_head.weight"}
    if homeless:
        raise UnsupportedModel(f"{folder}: a GGUF of {architecture.gguf_name} has no place for {min(homeless)}")

    out_path = Path(out_path)
    partial = out_path.with_name(out_path.name + ".partial")
    writer = GGUFWriter(partial, architecture.gguf_name)
    writer.add_file_type(FILE_TYPES[file_type])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    fields = read_hf_config(Path(folder) / "config.json").fields(architecture.model_types[0])
    write_config(writer, architecture, config, fields)
    write_vocab(writer, Path(folder), config)
    try:
        _write_tensors(writer, source, stored, config, file_type)
    finally:
        writer.close()
    os.replace(partial, out_path)
    return out_path


def _write_tensors(
    writer: GGUFWriter, source: TensorSource, stored: dict[str, Place], config: ModelConfig, file_type: str
) -> None:
    rope_freqs = rope_freq_factors(config.rope)
    if rope_freqs is not None:
        writer.add_tensor_info(ROPE_FREQS, rope_freqs.shape, rope_freqs.dtype, rope_freqs.nbytes)
    by_place: dict[str, list[str]] = {}
    for name, place in stored.items():
        by_place.setdefault(place.gguf_name, []).append(name)
    # The table of tensors comes before their bytes, so shapes have to be known first.
    kinds: dict[str, str] = {}
    for gguf_name, names in by_place.items():
        place = stored[names[0]]
        shape = _stored_shape(place.change, tuple(source.get(names[0]).shape))
        kinds[gguf_name] = kind = _kind(names[0], shape, file_type)
        if place.expert is not None:
            shape = (len(names), *shape)
        n_bytes = int(np.prod(shape[:-1])) * quants.row_bytes(kind, shape[-1])
        raw_type = GGMLQuantizationType[kind.upper()]
        writer.add_tensor_info(gguf_name, shape, np.dtype(np.float32), n_bytes, raw_dtype=raw_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if rope_freqs is not None:
        writer.write_tensor_data(rope_freqs)
    for gguf_name, names in by_place.items():
        # Of several experts: they are named in their order.
        pieces = [_encode(_changed(source.get(name), stored[name].change), kinds[gguf_name]) for name in names]
        writer.write_tensor_data(pieces[0] if len(pieces) == 1 else np.concatenate(pieces))


def _stored_shape(change: Change, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape if change.squeezed is None else (*shape[: change.squeezed], *shape[change.squeezed + 1 :])


def _changed(tensor: torch.Tensor, change: Change) -> torch.Tensor:
    """The inverse of ``Change.undo``."""
    if change.squeezed is not None:
        tensor = tensor.squeeze(change.squeezed)
    if change.row_order is not None:
        tensor = tensor[change.row_order]
    if change.column_order is not None:
        tensor = tensor[:, change.column_order]
    return tensor if change.values is None else change.values.store(tensor.float())


def _kind(name: str, shape: tuple[int, ...], file_type: str) -> str:
    if len(shape) < 2 or name.endswith(_ALWAYS_F32):
        return "f32"
    return "f16" if shape[-1] % quants.block_sizes(file_type)[0] else file_type


def _encode(tensor: torch.Tensor, kind: str) -> np.ndarray:
    """The tensor's bytes as the file holds them."""
    if kind in _FLOATS:
        return tensor.to(_FLOATS[kind]).contiguous().view(torch.uint8).numpy()
    return quants.pack(tensor, kind).numpy()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.gguf_export", description=__doc__)
    parser.add_argument("folder", type=Path, help="a Hugging Face folder")
    parser.add_argument("out", type=Path, help="the GGUF file to write")
    parser.add_argument("--type", choices=FILE_TYPES, default="f32", dest="file_type", help="of matrices (f32)")
    given = parser.parse_args(arguments)
    path = export_gguf(given.folder, given.out, given.file_type)
    print(f"{path}: {path.stat().st_size:,} bytes")
