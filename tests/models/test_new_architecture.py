"""An architecture is a file: Gemma 3 written as one, which has what none of those here has.

Two RoPEs, four norms around the sublayers of a block, GELU, scaled embeddings and queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from support.forward import decode, open_memory, random_ids
from support.tiny_architectures import N_VOCAB, WINDOW, tiny_config
from support.tiny_models import tiny_tokenizer
from transformers import AutoModelForCausalLM

from elastikv.kernels import select_kernels
from elastikv.kernels.weights import FeedForwardWeights, MixerWeights
from elastikv.models import load_model, registry
from elastikv.models.architecture import Architecture
from elastikv.models.config import ModelConfig, RopeConfig
from elastikv.models.reader import ModelReader
from elastikv.models.rope import read_rope
from elastikv.weights.base import Fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemma3Config(ModelConfig):
    window_rope: RopeConfig
    query_scale: float


class Gemma3(Architecture):
    name = "gemma3"
    classes = ("Gemma3ForCausalLM",)
    model_types = ("gemma3_text",)
    gguf_name = "gemma3"
    activation = "gelu_tanh"
    activation_key = "hidden_activation"
    norm_offset = 1.0
    qk_norm = True
    has_attention_bias = True
    has_window = True

    def config(self, fields: Fields) -> Gemma3Config:
        config = super().config(fields)
        window_rope = read_rope(fields, self.name, config.head_dim, layer_type="sliding_attention")
        query_scale = fields["query_pre_attn_scalar"] ** -0.5
        return Gemma3Config.extending(config, window_rope=window_rope, query_scale=query_scale)

    def rope(self, fields: Fields, head_dim: int) -> RopeConfig:
        return read_rope(fields, self.name, head_dim, layer_type="full_attention")

    def layer_tensors(self, config: ModelConfig) -> Sequence[str]:
        norms = ("pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight")
        return (*super().layer_tensors(config), *norms)

    def embedding_scale(self, config: ModelConfig) -> float:
        return config.hidden_size**0.5

    def mixer(self, read: ModelReader, layer: int) -> MixerWeights:
        config = read.config
        assert isinstance(config, Gemma3Config)
        norms = read.norms(layer, "input_layernorm", "post_attention_layernorm")
        rope = config.window_rope if config.layer_types[layer] == "sliding" else config.rope
        return read.attention(layer, norms, rope=rope, scale=config.query_scale)

    def feed_forward(self, read: ModelReader, layer: int) -> FeedForwardWeights:
        norms = read.norms(layer, "pre_feedforward_layernorm", "post_feedforward_layernorm")
        return read.mlp(layer, norms, activation=self.activation)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a random model, while the architecture is registered."""
    torch.manual_seed(1)
    ropes = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
    }
    config = tiny_config("gemma3_text", query_pre_attn_scalar=24, rope_parameters=ropes, tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.normal_(std=0.3)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    gemma = Gemma3()
    monkeypatch.setitem(registry._BY_NAME, "gemma3", gemma)
    monkeypatch.setitem(registry._BY_CLASS, "Gemma3ForCausalLM", gemma)
    return tmp_path


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
def test_logits_are_those_of_transformers(kernels: str, folder: Path) -> None:
    peer = AutoModelForCausalLM.from_pretrained(folder)
    model = load_model(folder, kernels=select_kernels(kernels, attention_precision="f32")).model
    assert model.info.architecture == "gemma3"
    ids = random_ids(5 * WINDOW, N_VOCAB)
    with torch.no_grad():
        wanted = peer(torch.tensor([ids])).logits[0]
    memory = open_memory(model)
    parts = [decode(model, memory, {0: part}, n_ubatch=16)[0] for part in (ids[:22], ids[22:23], ids[23:])]
    torch.testing.assert_close(torch.cat(parts), wanted, atol=2e-4, rtol=0)


def test_each_layer_shifts_k_with_its_own_rope(folder: Path) -> None:
    """A context shift moves K of layers with a window by other angles than K of the others."""
    model = load_model(folder, kernels=select_kernels("reference")).model
    assert model.rotate_k is not None
    k = torch.randn(3, 2, 8)
    local, whole = model.rotate_k(0, k, 5), model.rotate_k(1, k, 5)
    assert not torch.allclose(local, whole)
    assert torch.equal(model.rotate_k(2, k, 5), local)
