"""Random weights in the shapes of real models, as a Hugging Face folder and, beside it, as GGUF files.

python bench/shapes.py qwen3-0.6b /tmp/models --gguf q8_0 f16
"""

from __future__ import annotations

import argparse
from pathlib import Path

QWEN3_0_6B = {
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

QWEN3_5_0_8B = {
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

SMALL = {**QWEN3_0_6B, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "vocab_size": 4096,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}  # fmt: skip

SHAPES = {"qwen3-0.6b": QWEN3_0_6B, "qwen3.5-0.8b": QWEN3_5_0_8B, "small": SMALL}


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
    """A GGUF file's matrices as random blocks, of the types that llama.cpp's Q4_K_M has."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

    reader, random = GGUFReader(source), np.random.default_rng(0)
    writer = GGUFWriter(path, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            is_array = field.types[0] == GGUFValueType.ARRAY
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1] if is_array else None)
    for tensor in reader.tensors:
        if tensor.data.ndim == 1:
            writer.add_tensor(tensor.name, np.array(tensor.data))
            continue
        name = tensor.name
        layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
        finer = name.startswith(("token_embd", "output")) or (("attn_v" in name or "ffn_down" in name) and layer % 2)
        kind = GGMLQuantizationType.Q6_K if finer else GGMLQuantizationType.Q4_K
        n_values, n_bytes = GGML_QUANT_SIZES[kind]
        n_out, n_in = tensor.data.shape
        blocks = random.integers(0, 256, (n_out * n_in // n_values, n_bytes), dtype=np.uint8)
        scale = np.frombuffer(np.float16(2e-5).tobytes(), np.uint8)  # weights of about 0.02
        for place in (208,) if finer else (0, 2):
            blocks[:, place : place + 2] = scale
        writer.add_tensor(name, blocks.reshape(n_out, -1), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_tokenizer(folder: Path) -> None:
    """The demo model's tokenizer serves: ids beyond its vocabulary are never met by name."""
    import shutil

    from elastikv import demo

    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo.path() / name, folder / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
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
