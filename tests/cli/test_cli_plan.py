"""`elastikv plan`: the worked example of the documentation, and what it refuses."""

from __future__ import annotations

import json

import pytest
from support.configs import QWEN3_5_27B
from support.tiny_models import tiny_model

from elastikv import LLM
from elastikv.runtimes import find

KIB, MIB, GIB = 2**10, 2**20, 2**30


@pytest.fixture
def qwen3_5_27b(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(QWEN3_5_27B))
    return path


def test_the_worked_example(elastikv, qwen3_5_27b):
    arguments = ("-c", "131072", "--kv-growth", "double:1GiB", "--at", "100,6000,80000", "--json")
    plan = json.loads(elastikv("plan", "-m", qwen3_5_27b, *arguments).out)
    assert plan["bytes_per_cell"] == 64 * KIB
    assert plan["static_bytes"] == 8 * GIB
    assert plan["rows"] == [
        {"tokens": 100, "cells": 256, "bytes": 16 * MIB},
        {"tokens": 6000, "cells": 8192, "bytes": 512 * MIB},
        {"tokens": 80000, "cells": 81920, "bytes": 5 * GIB},
    ]


def test_recurrent_state_is_told_apart(elastikv, qwen3_5_27b):
    plan = json.loads(elastikv("plan", "-m", qwen3_5_27b, "--json").out)
    conv = (2 * 16 * 128 + 48 * 128) * 3 * 4
    state = 48 * 128 * 128 * 4
    assert plan["recurrent_bytes"] == pytest.approx(48 * (conv + state), rel=0.01)


# As published; of the latter without what is of pictures.
QWEN3_30B_A3B = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3_5_35B_A3B = {
    "architectures": ["Qwen3_5MoeForConditionalGeneration"],
    "image_token_id": 248056,
    "model_type": "qwen3_5_moe",
    "text_config": {
        "attention_bias": False,
        "attn_output_gate": True,
        "dtype": "bfloat16",
        "eos_token_id": 248044,
        "full_attention_interval": 4,
        "head_dim": 256,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "layer_types": [*["linear_attention"] * 3, "full_attention"] * 10,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_value_head_dim": 128,
        "max_position_embeddings": 262144,
        "mlp_only_layers": [],
        "model_type": "qwen3_5_moe_text",
        "moe_intermediate_size": 512,
        "mtp_num_hidden_layers": 1,
        "num_attention_heads": 16,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 40,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
            "rope_type": "default",
            "rope_theta": 10000000,
            "partial_rotary_factor": 0.25,
        },
        "router_aux_loss_coef": 0.001,
        "shared_expert_intermediate_size": 512,
        "vocab_size": 248320,
    },
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(
    ("config", "architecture", "cell_kib", "states"),
    [
        (QWEN3_30B_A3B, "qwen3_moe", 96, 0),
        (QWEN3_5_35B_A3B, "qwen3_5_moe", 20, 30 * 4 * ((2 * 16 + 32) * 128 * 3 + 32 * 128 * 128)),
    ],
)
def test_experts_cost_no_cache(elastikv, tmp_path, config, architecture, cell_kib, states):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert find(path).config.architecture == architecture
    plan = json.loads(elastikv("plan", "-m", path, "-c", "32768", "--at", "6000", "--json").out)
    assert plan["bytes_per_cell"] == cell_kib * KIB
    assert plan["static_bytes"] == 32768 * cell_kib * KIB
    assert plan["recurrent_bytes"] == pytest.approx(states, rel=0.01)


def test_parallel_sequences_and_cell_types_scale(elastikv, qwen3_5_27b):
    arguments = ("-c", "4096", "--at", "100", "--json", "-np", "3", "-ctk", "f32")
    plan = json.loads(elastikv("plan", "-m", qwen3_5_27b, *arguments).out)
    assert plan["bytes_per_cell"] == 96 * KIB
    assert plan["rows"][0]["bytes"] == 3 * 256 * 96 * KIB


def test_the_table_is_for_people(elastikv, qwen3_5_27b):
    result = elastikv("plan", "-m", qwen3_5_27b, "-c", "131072", "--at", "100,80000", "--kv-growth", "double:1GiB")
    assert "64 KiB a cell" in result.out
    assert "5 GiB" in result.out
    assert "8 GiB" in result.out


def test_a_folder_with_weights_and_the_demo_model_are_planned_too(elastikv, model_path):
    assert json.loads(elastikv("plan", "-m", model_path, "--json").out)["weight_bytes"] > 0
    assert elastikv("plan").code == 0


@pytest.mark.parametrize("at", ["0", "-5", "ten", "100,", "999999999"])
def test_bad_lengths_are_refused(elastikv, model_path, at):
    result = elastikv("plan", "-m", model_path, f"--at={at}")
    assert result.code == 1
    assert "--at" in result.err


@pytest.mark.parametrize("flags", [(), ("--kv-growth", "exact"), ("--kv-storage", "copy"), ("--no-kv-dynamic",)])
@pytest.mark.parametrize("arch", ["mistral", "qwen3_5"])
def test_what_is_planned_is_what_a_model_then_commits(elastikv, tmp_path, arch, flags):
    """Windows and states included: mistral's here is 48 tokens wide."""
    path = tiny_model(arch, tmp_path / arch)
    plan = json.loads(elastikv("plan", "-m", path, "-c", "1000", "--at", "900", "-b", "64", "--json", *flags).out)
    growth = "exact" if "exact" in flags else None
    storage = "copy" if "copy" in flags else "auto"
    options = {"n_ctx": 1000, "kv_growth": growth, "kv_storage": storage, "kv_dynamic": "--no-kv-dynamic" not in flags}
    with LLM(path, kernels="reference", n_batch=64, n_ubatch=64, **options) as llm:
        for start in range(0, 900, 64):
            llm.forward([7] * min(64, 900 - start))
        (sequence,) = llm.stats().sequences
        assert plan["rows"] == [{"tokens": 900, "cells": sequence.capacity_cells, "bytes": plan["rows"][0]["bytes"]}]
        assert plan["rows"][0]["bytes"] + plan["recurrent_bytes"] == sequence.committed_bytes
        assert plan["static_bytes"] + plan["recurrent_bytes"] == llm.static_bytes()
