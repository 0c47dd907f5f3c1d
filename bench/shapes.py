"""Random weights in the shapes of real models, as a Hugging Face folder and, beside it, as GGUF files.

python -m bench.shapes qwen3-0.6b /tmp/models --gguf q8_0 f16
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.report import new_parser

if TYPE_CHECKING:
    import numpy as np

QWEN3_0_6B: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}

QWEN3_5_0_8B: dict[str, Any] = {
    "model_type": "qwen3_5_text",
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 4,
    "vocab_size": 248320,
    "max_position_embeddings": 262144,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}

QWEN3_30B_A3B_4: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "num_hidden_layers": 4,  # of 48
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 32000,  # of 151936
    "max_position_embeddings": 40960,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}

SMALL: dict[str, Any] = {
    **QWEN3_0_6B,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "vocab_size": 4096,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}

QWEN3_5_27B_CACHE: dict[str, Any] = {
    **QWEN3_0_6B,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 4096,
    "max_position_embeddings": 262144,
}
"""The cells of Qwen3.5-27B's attention layers, 64 KiB of 16-bit K and V, with few weights."""

SHAPES = {
    "qwen3.5-27b-cache": QWEN3_5_27B_CACHE,
    "qwen3-0.6b": QWEN3_0_6B,
    "qwen3.5-0.8b": QWEN3_5_0_8B,
    "qwen3-30b-a3b-4-layers": QWEN3_30B_A3B_4,
    "small": SMALL,
}


@dataclass(frozen=True, slots=True)
class Precision:
    """Types of the weights in a folder and in a GGUF file; ``reads_folder``: elastikv takes the folder."""

    dtype: str
    gguf_type: str
    reads_folder: bool = False


PRECISIONS = {
    "f32": Precision("float32", "f32", reads_folder=True),
    "bf16": Precision("bfloat16", "f16", reads_folder=True),
    "q8_0": Precision("bfloat16", "q8_0"),
    "q4_0": Precision("bfloat16", "q4_0"),
    "q4_k_m": Precision("bfloat16", "q4_k_m"),
}


def add_shape_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """``--shape`` and ``--models``, where random models are kept."""
    models = Path(tempfile.gettempdir()) / "elastikv-models"
    parser.add_argument("--shape", choices=SHAPES, default=default)
    parser.add_argument("--models", type=Path, default=models, help="where random models are kept")


def write_model(shape: str, root: Path, dtype: str = "bfloat16") -> Path:
    """The folder of a random model; written once, found again later."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = root / f"{shape}-{dtype}"
    if (folder / "tokenizer.json").exists():
        return folder
    fields = dict(SHAPES[shape])
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    _write_tokenizer(folder)
    return folder


def write_gguf(folder: Path, file_type: str) -> Path:
    """The same weights as a GGUF file of one type; for ``q4_k_m`` other random ones, as nothing here packs those."""
    from tools.gguf_export import export_gguf

    path = folder.with_name(f"{folder.name}-{file_type}.gguf")
    if not path.exists() and file_type == "q4_k_m":
        _write_q4_k_m(write_gguf(folder, "f16"), path)
    elif not path.exists():
        export_gguf(folder, path, file_type=file_type)
    return path


def _write_q4_k_m(source: Path, path: Path) -> None:
    """Random blocks in place of a GGUF file's matrices, of the types that llama.cpp's Q4_K_M has."""
    from tools.gguf_files import random_blocks, rewrite

    def packed(name: str, data: np.ndarray) -> tuple[np.ndarray, str] | None:
        if data.ndim < 2 or data.shape[-1] % 256 or "ffn_gate_inp" in name:
            return None
        layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
        finer = name.startswith(("token_embd", "output")) or (("attn_v" in name or "ffn_down" in name) and layer % 2)
        kind = "q6_k" if finer else "q4_k"
        *outer, n_in = data.shape
        blocks = random_blocks(kind, math.prod(outer), n_in, seed=zlib.crc32(name.encode()))
        return blocks.reshape(*outer, -1), kind

    rewrite(source, path, tensor=packed)


def _write_tokenizer(folder: Path) -> None:
    """The demo model's tokenizer serves: ids beyond its vocabulary are never met by name."""
    from elastikv import demo

    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo.path() / name, folder / name)


def weight_bytes(model: Path) -> int:
    """Of a GGUF file or of a folder."""
    files = [model] if model.is_file() else list(model.glob("*.safetensors"))
    return sum(path.stat().st_size for path in files)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("root", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--gguf", nargs="*", default=[], metavar="TYPE")
    args = parser.parse_args()
    folder = write_model(args.shape, args.root, args.dtype)
    print(folder)
    for file_type in args.gguf:
        print(write_gguf(folder, file_type))


if __name__ == "__main__":
    main()
