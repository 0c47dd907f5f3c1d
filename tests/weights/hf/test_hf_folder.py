"""Hugging Face folders: names, shards, and one clear line for each that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.forward import decode, open_memory, random_ids
from support.tiny_models import N_VOCAB, tiny_model

from elastikv.errors import CorruptFile, ElastikvError, ModelError, UnsupportedModel
from elastikv.kernels import select_kernels
from elastikv.models import LoadedModel, load_model, read_config
from elastikv.models.checkpoint import open_checkpoint
from elastikv.weights.hf import HFFolder


def load(path: Path, **options: Any) -> LoadedModel:
    return load_model(path, kernels=select_kernels("reference"), **options)


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, **changes}))


def refusal(path: Path) -> ElastikvError:
    with pytest.raises(ElastikvError) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    return caught.value


def test_shards_hold_the_same_model(tmp_path: Path) -> None:
    single = load(tiny_model("qwen3", tmp_path / "single")).model
    sharded_path = tiny_model("qwen3", tmp_path / "sharded", max_shard_size="200KB")
    assert len(list(sharded_path.glob("model-*.safetensors"))) > 2
    sharded = load(sharded_path).model
    ids = random_ids(10, N_VOCAB)
    wanted = decode(single, open_memory(single), {0: ids})[0]
    assert torch.equal(decode(sharded, open_memory(sharded), {0: ids})[0], wanted)


def test_vision_language_checkpoint_offers_its_text_model_under_plain_names(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_model("qwen3_5_vl", tmp_path))
    names = set(checkpoint.tensors.names())
    assert "model.embed_tokens.weight" in names
    assert "model.layers.0.linear_attn.in_proj_qkv.weight" in names
    assert not any("visual" in name or "language_model" in name for name in names)
    assert checkpoint.config.architecture == "qwen3_5"
    assert checkpoint.config.n_vocab == N_VOCAB


@pytest.mark.parametrize("arch", ["qwen3_moe", "qwen3_5_moe"])
def test_experts_in_one_tensor_are_those_in_tensors_of_their_own(arch: str, tmp_path: Path) -> None:
    """Published checkpoints have both: of Qwen3-30B-A3B the latter, of Qwen3.5-35B-A3B the former."""
    path = tiny_model(arch, tmp_path)
    ids = random_ids(10, N_VOCAB)
    model = load(path).model
    wanted, names = decode(model, open_memory(model), {0: ids})[0], set(HFFolder(path).names())
    fuse_experts(path / "model.safetensors")
    source, model = HFFolder(path), load(path).model
    assert set(source.names()) == names
    assert source.get("model.layers.1.mlp.experts.5.up_proj.weight").shape == (32, 64)
    assert source.nbytes("model.layers.1.mlp.experts.5.up_proj.weight") == 32 * 64 * 4
    assert torch.equal(decode(model, open_memory(model), {0: ids})[0], wanted)


def fuse_experts(file: Path) -> None:
    """Rewrite a file as ``gate_up_proj`` and ``down_proj`` of all experts, each three-dimensional."""
    tensors = load_file(file)
    for down in [name for name in tensors if name.endswith("experts.0.down_proj.weight")]:
        prefix = down.removesuffix("0.down_proj.weight")
        taken = [
            {part: tensors.pop(f"{prefix}{expert}.{part}_proj.weight") for part in ("gate", "up", "down")}
            for expert in range(8)
        ]
        tensors[f"{prefix}gate_up_proj"] = torch.stack([torch.cat([each["gate"], each["up"]]) for each in taken])
        tensors[f"{prefix}down_proj"] = torch.stack([each["down"] for each in taken])
    save_file(tensors, file)


def test_bytes_and_values_of_a_tensor(tmp_path: Path) -> None:
    source = HFFolder(tiny_model("llama", tmp_path))
    tensor = source.get("model.layers.1.mlp.up_proj.weight")
    assert tensor.shape == (96, 64)
    assert source.nbytes("model.layers.1.mlp.up_proj.weight") == tensor.nbytes
    assert source.get_packed("model.layers.1.mlp.up_proj.weight") is None
    with pytest.raises(CorruptFile, match=r"lack model\.nothing"):
        source.get("model.nothing")


def test_progress_counts_every_byte_once(tmp_path: Path) -> None:
    path = tiny_model("qwen3_5", tmp_path)
    seen: list[tuple[int, int]] = []
    load(path, progress=lambda done, total: seen.append((done, total)))
    done = [each for each, _ in seen]
    assert done == sorted(done)
    assert {total for _, total in seen} == {done[-1]}
    assert 0.98 < done[-1] / (path / "model.safetensors").stat().st_size <= 1


def test_weights_are_the_models_own_and_not_the_files(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path)
    model = load(path).model
    ids = random_ids(5, N_VOCAB)
    wanted = decode(model, open_memory(model), {0: ids})[0]
    (path / "model.safetensors").write_bytes(b"\xff" * (path / "model.safetensors").stat().st_size)
    assert torch.equal(decode(model, open_memory(model), {0: ids})[0], wanted)


def test_fingerprint_tells_weights_apart(tmp_path: Path) -> None:
    prints = [
        load(tiny_model("llama", tmp_path / "llama")).model.info.fingerprint,
        load(tmp_path / "llama").model.info.fingerprint,
        load(tiny_model("llama", tmp_path / "llama", seed=1)).model.info.fingerprint,
        load(tmp_path / "llama", dtype="bf16").model.info.fingerprint,
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_end_tokens_come_from_the_generation_config(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    assert read_config(path).eos_token_ids == (2, 0)
    assert load(path).tokenizer.eos_token_ids == (2, 0)
    (path / "generation_config.json").unlink()
    assert read_config(path).eos_token_ids == (2,)


def test_no_such_file(tmp_path: Path) -> None:
    error = refusal(tmp_path / "nowhere")
    assert type(error) is ModelError
    assert str(error).endswith("nowhere: no such file or folder")


def test_folder_that_is_no_model(tmp_path: Path) -> None:
    assert "no config.json" in str(refusal(tmp_path))


def test_file_of_no_known_format(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    assert "neither a Hugging Face folder nor a .gguf file" in str(refusal(tmp_path / "model.bin"))


def test_folder_without_weights(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path)
    (path / "model.safetensors").unlink()
    assert "holds no weights" in str(refusal(path))
    assert read_config(path).n_layers == 3


def test_missing_shard(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path, max_shard_size="200KB")
    sorted(path.glob("model-*.safetensors"))[1].unlink()
    assert "model-00002" in str(refusal(path))


@pytest.mark.parametrize("keep", [4, 1000, -100])
def test_truncated_weights(keep: int, tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    error = refusal(path)
    assert type(error) is CorruptFile
    assert "model.safetensors: truncated or altered" in str(error)


def test_missing_tensor(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path)
    edit_config(path, num_hidden_layers=4)
    assert "the weights lack model.layers.3.input_layernorm.weight" in str(refusal(path))


def test_tensor_of_another_shape_than_the_config_says(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path)
    edit_config(path, intermediate_size=128)
    error = refusal(path)
    assert type(error) is CorruptFile
    assert "mlp.gate_proj" in str(error)


def refused_config(path: Path, **changes: Any) -> str:
    edit_config(path, **changes)
    with pytest.raises(UnsupportedModel) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_unsupported_architecture_is_named_with_the_supported_ones(tmp_path: Path) -> None:
    message = refused_config(tiny_model("llama", tmp_path), architectures=["MambaForCausalLM"])
    assert "MambaForCausalLM is not supported" in message
    for name in ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        assert name in message
    assert "Qwen3_5ForConditionalGeneration" in message


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised by 'gptq'"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "RoPE scaling 'longrope'"),
        ({"layer_types": ["chunked_attention"] * 3}, "chunked_attention"),
        ({"layer_types": ["full_attention"]}, "3 layers"),
    ],
)
def test_what_would_compute_something_else_is_refused(changes: dict[str, Any], part: str, tmp_path: Path) -> None:
    assert part in refused_config(tiny_model("llama", tmp_path), **changes)


def test_config_that_is_no_json(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path)
    (path / "config.json").write_text("{")
    assert "cannot be read as JSON" in str(refusal(path))


@pytest.mark.parametrize("options", [{"dtype": "int8"}, {"quantize": "q2"}])
def test_unknown_formats_are_named(options: dict[str, str], tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path)
    with pytest.raises(ValueError, match=next(iter(options.values()))):
        load(path, **options)
