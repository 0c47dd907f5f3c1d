"""Random models of a few thousand weights, one for each architecture the cache is tested with."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

N_VOCAB = 96
WINDOW = 6

_COMMON: dict[str, Any] = {
    "vocab_size": N_VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_MOE: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
}
_MAMBA: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
_DELTA_NET: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}
_SLIDING: dict[str, Any] = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
_MLA: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}

# model_type -> what its config needs beyond _COMMON
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "gemma2": {**_SLIDING, "query_pre_attn_scalar": 8},
    "qwen3_5_text": _DELTA_NET,
    "gpt_oss": {**_SLIDING, **_MOE},
    "granitemoehybrid": {
        **_MAMBA,
        **_MOE,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "shared_intermediate_size": 24,
    },
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 64},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "conv_L_cache": 3},
    "deepseek_v3": _MLA,
    "cohere2": _SLIDING,
    "gemma3n_text": {
        **_SLIDING,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "num_kv_shared_layers": 2,
        "intermediate_size": [48] * 4,
        "activation_sparsity_pattern": [0.0] * 4,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": N_VOCAB,
        "laurel_rank": 4,
    },
    "gemma3_text": {**_SLIDING, "query_pre_attn_scalar": 8},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": _MOE,
    "qwen3_next": {**_DELTA_NET, **_MOE},
    "phi3": {"sliding_window": None},
    "olmo2": {},
    "granite": {},
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "smollm3": {},
    "deepseek_v2": {**_MLA, "topk_method": "greedy"},
    "gemma": {},
    "gemma4_text": {
        **_SLIDING,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": N_VOCAB,
        "global_head_dim": 8,
    },
    "mixtral": _MOE,
    "olmo3": _SLIDING,
    "jamba": {
        **_MOE,
        "mamba_d_state": 8,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_dt_rank": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention", "mamba"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "expand": 2, "chunk_size": 8},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256},
    "gpt_neox": {},
    "glm4": {},
    "ernie4_5": {},
    "hunyuan_v1_dense": {},
    "seed_oss": {},
    "starcoder2": {},
    "stablelm": {},
    "exaone4": _SLIDING,
}

# The first stand for all that differ in what they remember; the others take a test run too long.
_FIRST = 11


def parametrised(architectures: Iterable[str] = ARCHITECTURES) -> list[Any]:
    """For ``pytest.mark.parametrize``: those beyond the first are marked slow."""
    first = set(list(ARCHITECTURES)[:_FIRST])
    return [name if name in first else pytest.param(name, marks=pytest.mark.slow) for name in architectures]


def tiny_config(model_type: str, **changes: Any) -> PretrainedConfig:
    return AutoConfig.for_model(model_type, **{**_COMMON, **ARCHITECTURES[model_type], **changes})


@cache
def tiny_model(model_type: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The same weights for the same arguments, in evaluation mode."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(model_type), dtype=dtype).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model
