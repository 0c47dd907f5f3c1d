"""A GGUF gives what the folder gave that it was written from: tensors, config, logits; and bad files are named."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.forward import decode, open_memory, random_ids
from support.tiny_models import ARCHITECTURES, tiny_model

from elastikv.errors import CorruptFile, UnsupportedModel
from elastikv.kernels import quants, select_kernels
from elastikv.models import load_model
from elastikv.models.build import read_weights
from elastikv.models.checkpoint import open_checkpoint
from elastikv.models.decoder import Decoder
from elastikv.weights.gguf import GGUFFile
from elastikv.weights.hf import HFFolder
from elastikv.weights.loader import WeightLoader
from tools.gguf_export import export_gguf, main
from tools.gguf_files import K_QUANTS, random_blocks, rewrite

PROMPT = random_ids(70, 300)
# A head of v as wide as a block, so that reordered columns stay packed.
_DELTA_NET = {"linear_key_head_dim": 32, "linear_value_head_dim": 32}
_BLOCK_WIDE: dict[str, Any] = {"qwen3_5": _DELTA_NET, "qwen3_5_moe": _DELTA_NET}
_NEVER_PACKED = ("mlp.gate.weight", "shared_expert_gate.weight")


def _logits(path: Path, **options: Any) -> torch.Tensor:
    model = load_model(path, kernels=select_kernels("reference"), **options).model
    return decode(model, open_memory(model), {0: PROMPT})[0]


def _folder(arch: str, tmp_path: Path, **overrides: Any) -> Path:
    return tiny_model(arch, tmp_path / arch, **{**_BLOCK_WIDE.get(arch, {}), **overrides})


def _relative_rms(logits: torch.Tensor, exact: torch.Tensor) -> float:
    return float((logits - exact).square().mean().sqrt() / exact.std())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_tensors_config_and_logits_are_those_of_the_folder(arch: str, tmp_path: Path) -> None:
    folder = tiny_model(arch, tmp_path / arch)
    path = export_gguf(folder, tmp_path / "model.gguf")
    file, source = open_checkpoint(path), open_checkpoint(folder)
    assert set(file.tensors.names()) == set(source.tensors.names())
    for name in source.tensors.names():
        # What is stored as 1 + w or -exp(w) comes back rounded.
        torch.testing.assert_close(file.tensors.get(name), source.tensors.get(name), rtol=0, atol=5e-7)
    expected = dataclasses.replace(
        source.config,
        architecture="llama" if arch == "mistral" else source.config.architecture,
        rms_norm_eps=float(np.float32(source.config.rms_norm_eps)),
        eos_token_ids=file.config.eos_token_ids,
    )
    assert file.config == expected
    assert file.config.eos_token_ids[0] == source.config.eos_token_ids[0]
    assert torch.equal(_logits(path), _logits(folder))


_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {**_LLAMA3, "original_max_position_embeddings": 64},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.5},
        {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "mscale": 0.7,
            "mscale_all_dim": 1,
        },
    ],
)
def test_rope_scaling_survives(rope: dict[str, Any], tmp_path: Path) -> None:
    folder = _folder("llama", tmp_path, rope_parameters={"rope_theta": 10000.0, **rope})
    plain = _folder("llama", tmp_path / "plain")
    exact = _logits(folder)
    assert _relative_rms(_logits(plain), exact) > 0.01
    assert _relative_rms(_logits(export_gguf(folder, tmp_path / "model.gguf")), exact) < 1e-5


# Relative rms of rounded Gaussian weights, and how much the layers of such a model multiply it: the hybrid's
# decays are exponentials of what its matrices give.
_WEIGHT_ERROR = {"f16": 0.0002, "bf16": 0.0017, "q8_0": 0.0045, "q4_0": 0.08}
_GAIN = {"llama": 8, "qwen3_5": 25}


@pytest.mark.parametrize("file_type", _WEIGHT_ERROR)
@pytest.mark.parametrize("arch", _GAIN)
def test_logits_are_off_as_the_file_type_says(arch: str, file_type: str, tmp_path: Path) -> None:
    folder = _folder(arch, tmp_path)
    path = export_gguf(folder, tmp_path / "model.gguf", file_type)
    weight_error = _WEIGHT_ERROR[file_type]
    assert weight_error < _relative_rms(_logits(path), _logits(folder)) < weight_error * _GAIN[arch]


class _Rounded(HFFolder):
    """The folder's tensors after a round trip through blocks."""

    def get(self, name: str) -> torch.Tensor:
        tensor = super().get(name)
        if tensor.ndim != 2 or name.endswith(_NEVER_PACKED):
            return tensor
        return quants.unpack(quants.pack(tensor, "q4_0"), "q4_0")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_only_the_rounding_of_blocks_sets_a_packed_file_apart(arch: str, tmp_path: Path) -> None:
    folder = _folder(arch, tmp_path)
    checkpoint = open_checkpoint(folder)
    loader = WeightLoader(_Rounded(folder), str(checkpoint.config))
    model = Decoder(read_weights(checkpoint.architecture, checkpoint.config, loader), select_kernels("reference"))
    rounded = decode(model, open_memory(model), {0: PROMPT})[0]
    path = export_gguf(folder, tmp_path / "model.gguf", "q4_0")
    torch.testing.assert_close(_logits(path, quantize="none"), rounded, rtol=0, atol=1e-5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_packed_tensors_are_the_folders_quantised(arch: str, tmp_path: Path) -> None:
    """Undoing the order of rows and columns moves whole rows and blocks, and changes none."""
    folder = _folder(arch, tmp_path)
    file = open_checkpoint(export_gguf(folder, tmp_path / "model.gguf", "q8_0"))
    source = HFFolder(folder)
    n_packed = 0
    for name in source.names():
        packed = file.tensors.get_packed(name)
        if packed is None:
            assert file.tensors.get(name).dtype == torch.float32
            continue
        n_packed += 1
        assert packed.type == "q8_0"
        assert torch.equal(packed.data, quants.pack(source.get(name), "q8_0")), name
        assert torch.equal(file.tensors.get(name), quants.unpack(packed.data, "q8_0")), name
    assert n_packed > 7 * file.config.n_layers


def test_gate_and_up_of_experts_in_one_tensor(tmp_path: Path) -> None:
    """As newer converters may write them."""
    folder = tiny_model("qwen3_5_moe", tmp_path / "model")
    plain = export_gguf(folder, tmp_path / "plain.gguf")

    def fuse(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name in [name for name in tensors if "ffn_gate_exps" in name]:
            both = [tensors.pop(name), tensors.pop(name.replace("_gate_", "_up_"))]
            tensors[name.replace("_gate_", "_gate_up_")] = np.concatenate(both, axis=1)
        return tensors

    path = rewrite(plain, tmp_path / "fused.gguf", tensors=fuse)
    assert "blk.3.ffn_gate_up_exps.weight" in GGUFFile(path).header.tensors
    assert torch.equal(_logits(path), _logits(plain))


def test_columns_whose_order_cuts_blocks_are_packed_anew(tmp_path: Path) -> None:
    folder = tiny_model("qwen3_5", tmp_path / "model")  # v heads of 24
    file = open_checkpoint(export_gguf(folder, tmp_path / "model.gguf", "q4_0")).tensors
    name = "model.layers.0.linear_attn.out_proj.weight"
    packed = file.get_packed(name)
    assert packed is not None
    assert packed.type == "q8_0"
    assert _relative_rms(quants.unpack(packed.data, "q8_0"), file.get(name)) < 0.006


@pytest.mark.parametrize("kind", K_QUANTS)
def test_k_quants_stay_packed_or_are_unpacked(kind: str, tmp_path: Path) -> None:
    wide = {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
    plain = export_gguf(tiny_model("llama", tmp_path / "llama", **wide), tmp_path / "plain.gguf")
    blocks = {}

    def replace(name: str, data: np.ndarray) -> tuple[np.ndarray, str] | None:
        if data.ndim < 2:
            return None
        blocks[name] = random_blocks(kind, *data.shape, seed=len(blocks))
        return blocks[name], kind

    path = rewrite(plain, tmp_path / "packed.gguf", tensor=replace)
    file = open_checkpoint(path).tensors
    packed = file.get_packed("model.layers.1.mlp.down_proj.weight")
    assert packed is not None
    assert packed.type == kind
    assert np.array_equal(packed.data.numpy(), blocks["blk.1.ffn_down.weight"])
    q = file.get_packed("model.layers.1.self_attn.q_proj.weight")
    assert q is not None
    assert torch.equal(quants.unpack(q.data, kind), file.get("model.layers.1.self_attn.q_proj.weight"))
    kept, unpacked = _logits(path), _logits(path, quantize="none")
    assert _relative_rms(kept, unpacked) < 1e-4
    assert _relative_rms(_logits(path, quantize="q8_0"), unpacked) < 0.05


def test_other_packed_types_are_repacked_as_q8_0(tmp_path: Path) -> None:
    plain = export_gguf(_folder("qwen3", tmp_path), tmp_path / "plain.gguf")
    zeros = np.zeros((64, 64 // 32 * 22), dtype=np.uint8)

    def replace(name: str, data: np.ndarray) -> tuple[np.ndarray, str] | None:
        return (zeros, "q5_0") if name == "blk.0.attn_k.weight" else None

    file = open_checkpoint(rewrite(plain, tmp_path / "q5_0.gguf", tensor=replace)).tensors
    packed = file.get_packed("model.layers.0.self_attn.k_proj.weight")
    assert packed is not None
    assert packed.type == "q8_0"
    assert not file.get("model.layers.0.self_attn.k_proj.weight").any()


def test_rows_no_block_divides_are_written_as_f16(tmp_path: Path) -> None:
    folder = _folder("qwen3", tmp_path, intermediate_size=72)
    file = open_checkpoint(export_gguf(folder, tmp_path / "model.gguf", "q8_0")).tensors
    assert file.get("model.layers.0.mlp.down_proj.weight").dtype == torch.float16
    assert file.get_packed("model.layers.0.mlp.up_proj.weight") is not None


def test_the_command_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(_folder("qwen2", tmp_path)), str(tmp_path / "model.gguf"), "--type", "q4_0"])
    assert "model.gguf" in capsys.readouterr().out
    assert open_checkpoint(tmp_path / "model.gguf").tensors.get_packed("lm_head.weight") is not None
    assert [path.name for path in tmp_path.glob("*.partial")] == []


def _one_line(error: BaseException, path: Path) -> bool:
    text = str(error)
    return "\n" not in text and str(path) in text


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return export_gguf(_folder("qwen3", tmp_path), tmp_path / "good.gguf")


@pytest.mark.parametrize("part", [0.0, 0.00001, 0.002, 0.01, 0.05, 0.5, 0.999])
def test_truncated_files_are_corrupt(part: float, good: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    content = good.read_bytes()
    cut.write_bytes(content[: int(part * len(content))])
    with pytest.raises(CorruptFile, match=r"truncated|empty") as caught:
        GGUFFile(cut)
    assert _one_line(caught.value, cut)


def test_a_file_that_shrinks_after_it_was_opened_is_corrupt(good: Path) -> None:
    file, checkpoint = GGUFFile(good), open_checkpoint(good)
    good.write_bytes(good.read_bytes()[:-100])
    last = max(file.header.tensors.values(), key=lambda tensor: tensor.offset)
    places = checkpoint.architecture.places(checkpoint.config)
    name = next(name for name, place in places.items() if place.gguf_name == last.name)
    with pytest.raises(CorruptFile, match="truncated"):
        checkpoint.tensors.get(name)
    with pytest.raises(CorruptFile, match="truncated"):
        file.read(last)


def test_altered_headers_never_get_past_opening(good: Path, tmp_path: Path) -> None:
    """Whatever a byte of the counts, lengths and types becomes, the answer is typed or the file opens."""
    content = bytearray(good.read_bytes())
    altered = tmp_path / "altered.gguf"
    for position in [*range(4, 64), *range(64, 4000, 97)]:
        changed = bytearray(content)
        changed[position] ^= 0xFF
        altered.write_bytes(changed)
        with contextlib.suppress(CorruptFile, UnsupportedModel):
            open_checkpoint(altered)


def test_other_files_are_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(CorruptFile, match="is not a GGUF file"):
        GGUFFile(path)


def test_unsupported_architectures_are_named_with_what_is_supported(good: Path, tmp_path: Path) -> None:
    path = rewrite(good, tmp_path / "other.gguf", metadata={"general.architecture": "gemma3"})
    with pytest.raises(UnsupportedModel, match="'gemma3' is not supported; supported: llama, qwen2, qwen3, qwen35"):
        open_checkpoint(path)


def test_unsupported_tensor_types_are_named(good: Path, tmp_path: Path) -> None:
    def replace(name: str, data: np.ndarray) -> tuple[np.ndarray, str] | None:
        return (data.astype(np.int32), "i32") if name == "blk.1.ffn_up.weight" else None

    path = rewrite(good, tmp_path / "int.gguf", tensor=replace)
    with pytest.raises(UnsupportedModel, match=r"blk\.1\.ffn_up\.weight has tensor type I32, which is not supported"):
        open_checkpoint(path)


def test_what_converters_do_not_say_of_experts(tmp_path: Path) -> None:
    """llama.cpp always normalises their weights; and what only layers without experts would need may be missing."""
    folder = tiny_model("qwen3_moe", tmp_path / "model", norm_topk_prob=False)
    path = export_gguf(folder, tmp_path / "plain.gguf")
    assert not open_checkpoint(path).config.experts.normalised
    key = "qwen3moe.expert_weights_norm"
    silent = rewrite(path, tmp_path / "silent.gguf", without=[key])
    assert open_checkpoint(silent).config.experts.normalised
    path = export_gguf(tiny_model("qwen3_5_moe", tmp_path / "other"), tmp_path / "other.gguf")
    silent = rewrite(path, tmp_path / "other silent.gguf", without=["qwen35moe.feed_forward_length"])
    assert open_checkpoint(silent).config == dataclasses.replace(open_checkpoint(path).config, name="other")


def test_experts_of_another_number_than_the_rows(tmp_path: Path) -> None:
    good = export_gguf(tiny_model("qwen3_moe", tmp_path / "model"), tmp_path / "good.gguf")
    path = rewrite(good, tmp_path / "more.gguf", metadata={"qwen3moe.expert_count": 9})
    assert "model.layers.0.mlp.experts.8.up_proj.weight" not in open_checkpoint(path).tensors
    with pytest.raises(CorruptFile, match=r"mlp\.gate\.weight is 8 x 64, but the config says 9 x 64"):
        load_model(path, kernels=select_kernels("reference"))


def test_what_a_gguf_has_no_place_for_is_not_dropped(tmp_path: Path) -> None:
    folder = tiny_model("qwen3_moe", tmp_path / "model", mlp_only_layers=[1])
    with pytest.raises(UnsupportedModel, match=r"qwen3moe has no place for model\.layers\.1\.mlp\.down_proj\.weight"):
        export_gguf(folder, tmp_path / "model.gguf")


def test_parts_of_a_split_file_say_so(good: Path, tmp_path: Path) -> None:
    path = rewrite(good, tmp_path / "part.gguf", metadata={"split.count": 3})
    with pytest.raises(UnsupportedModel, match="one of several files"):
        open_checkpoint(path)


def test_missing_tensors_and_metadata_are_named(good: Path, tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match=r"lacks model\.layers\.9\.mlp\.up_proj\.weight"):
        open_checkpoint(good).tensors.get("model.layers.9.mlp.up_proj.weight")
    path = rewrite(good, tmp_path / "renamed.gguf", metadata={"general.architecture": "qwen2"})
    with pytest.raises(CorruptFile, match=r"metadata lacks qwen2\."):
        open_checkpoint(path)
