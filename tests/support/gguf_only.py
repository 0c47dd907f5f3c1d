"""Small random GGUFs of architectures that llama.cpp alone runs here: windows, and a state without attention."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, TokenType

N_VOCAB = 320
N_EMBD, N_LAYERS, N_FF = 64, 6, 96
N_HEADS, N_KV_HEADS, HEAD_DIM = 4, 2, 32
WINDOW = 64
D_INNER, D_STATE, D_CONV, DT_RANK = 2 * N_EMBD, 16, 4, 4
EPS = 1e-6

Shape = tuple[int, ...]

_OUTPUT: dict[str, Shape] = {"output_norm.weight": (N_EMBD,)}


def write_gemma3(path: Path) -> Path:
    """Five of its six layers see a window of 64 tokens."""
    writer = _writer(path, "gemma3")
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_sliding_window(WINDOW)
    writer.add_layer_norm_rms_eps(EPS)
    layer: dict[str, Shape] = {
        "attn_q": (N_HEADS * HEAD_DIM, N_EMBD),
        "attn_k": (N_KV_HEADS * HEAD_DIM, N_EMBD),
        "attn_v": (N_KV_HEADS * HEAD_DIM, N_EMBD),
        "attn_output": (N_EMBD, N_HEADS * HEAD_DIM),
        "ffn_gate": (N_FF, N_EMBD),
        "ffn_up": (N_FF, N_EMBD),
        "ffn_down": (N_EMBD, N_FF),
        **dict.fromkeys(("attn_q_norm", "attn_k_norm"), (HEAD_DIM,)),
        **dict.fromkeys(("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"), (N_EMBD,)),
    }
    return _write(writer, path, {f"{name}.weight": shape for name, shape in layer.items()})


def write_mamba(path: Path) -> Path:
    """Nothing but states."""
    writer = _writer(path, "mamba")
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(D_CONV)
    writer.add_ssm_inner_size(D_INNER)
    writer.add_ssm_state_size(D_STATE)
    writer.add_ssm_time_step_rank(DT_RANK)
    writer.add_layer_norm_rms_eps(EPS)
    return _write(
        writer,
        path,
        {
            "attn_norm.weight": (N_EMBD,),
            "ssm_in.weight": (2 * D_INNER, N_EMBD),
            "ssm_conv1d.weight": (D_INNER, D_CONV),
            "ssm_conv1d.bias": (D_INNER,),
            "ssm_x.weight": (DT_RANK + 2 * D_STATE, D_INNER),
            "ssm_dt.weight": (D_INNER, DT_RANK),
            "ssm_dt.bias": (D_INNER,),
            "ssm_a": (D_INNER, D_STATE),
            "ssm_d": (D_INNER,),
            "ssm_out.weight": (N_EMBD, D_INNER),
        },
    )


def write_bert(path: Path) -> Path:
    """Makes embeddings, and continues no text."""
    writer = _writer(path, "bert")
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEADS)
    writer.add_layer_norm_eps(EPS)
    writer.add_causal_attention(False)
    writer.add_token_type_count(2)
    weights: dict[str, Shape] = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (N_EMBD, N_EMBD))
    weights |= {"ffn_up": (N_FF, N_EMBD), "ffn_down": (N_EMBD, N_FF)}
    weights |= {"attn_output_norm": (N_EMBD,), "layer_output_norm": (N_EMBD,)}
    layer = {
        f"{name}.{part}": s if part == "weight" else s[:1] for name, s in weights.items() for part in ("weight", "bias")
    }
    ends: dict[str, Shape] = {"position_embd.weight": (4096, N_EMBD), "token_types.weight": (2, N_EMBD)}
    ends |= {"token_embd_norm.weight": (N_EMBD,), "token_embd_norm.bias": (N_EMBD,)}
    return _write(writer, path, layer, ends)


def _writer(path: Path, architecture: str) -> GGUFWriter:
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(4096)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYERS)
    writer.add_vocab_size(N_VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    writer.add_token_list(letters + [f"<{token}>" for token in range(len(letters), N_VOCAB)])
    writer.add_token_types([TokenType.NORMAL] * N_VOCAB)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(N_VOCAB - 1)
    return writer


def _write(writer: GGUFWriter, path: Path, layer: Mapping[str, Shape], ends: Mapping[str, Shape] = _OUTPUT) -> Path:
    random = np.random.default_rng(7)
    shapes: dict[str, Shape] = {"token_embd.weight": (N_VOCAB, N_EMBD), **ends}
    shapes |= {f"blk.{index}.{name}": shape for index in range(N_LAYERS) for name, shape in layer.items()}
    for name, shape in shapes.items():
        values = random.standard_normal(shape, dtype=np.float32) / np.sqrt(shape[-1])
        if name.endswith("norm.weight"):
            values = values * 0.1 + 1
        elif name.endswith("ssm_a"):
            values = -np.exp(values)
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
