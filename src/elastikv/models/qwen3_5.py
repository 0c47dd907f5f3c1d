"""The Qwen3.5 text model: gated delta nets, and every so often a layer of gated attention."""

from __future__ import annotations

import torch

from elastikv.kernels.base import Kernels, Sublayer
from elastikv.kernels.rope import Rope
from elastikv.kernels.weights import DeltaNetWeights, Norms
from elastikv.memory.base import KVLayer, LayerMemory, RecurrentLayer
from elastikv.models.attention import read_attention
from elastikv.models.build import build_decoder
from elastikv.models.decoder import Decoder
from elastikv.weights.config import DeltaNetConfig, ModelConfig
from elastikv.weights.loader import WeightLoader


def memory_layers(config: ModelConfig) -> list[LayerMemory]:
    net = _delta_net(config)
    state = RecurrentLayer(
        ((net.conv_channels, net.conv_width - 1), (net.n_v_heads, net.k_dim, net.v_dim)),
    )
    cells = KVLayer(config.n_kv_heads, config.head_dim, config.head_dim)
    return [state if kind == "recurrent" else cells for kind in config.layer_types]


def build(config: ModelConfig, loader: WeightLoader, kernels: Kernels) -> Decoder:
    def mixer(layer: int, norms: Norms, rope: Rope) -> Sublayer:
        kind = config.layer_types[layer]
        ordinal = config.layer_types[:layer].count(kind)
        if kind == "recurrent":
            return kernels.delta_net_layer(_read_delta_net(config, loader, layer, norms), ordinal)
        weights = read_attention(config, loader, layer, norms, rope, gate_order=_gates_last(config))
        return kernels.attention_layer(weights, ordinal)

    return build_decoder(config, loader, kernels, memory_layers(config), mixer)


def _read_delta_net(config: ModelConfig, loader: WeightLoader, layer: int, norms: Norms) -> DeltaNetWeights:
    net, hidden = _delta_net(config), config.hidden_size
    prefix = f"model.layers.{layer}.linear_attn."
    names = [prefix + name for name in ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")]
    n_rows = net.conv_channels + net.value_width + 2 * net.n_v_heads
    return DeltaNetWeights(
        norms,
        n_k_heads=net.n_k_heads,
        n_v_heads=net.n_v_heads,
        k_dim=net.k_dim,
        v_dim=net.v_dim,
        conv=loader.vector(prefix + "conv1d.weight", (net.conv_channels, 1, net.conv_width)).squeeze(1),
        rate=-loader.vector(prefix + "A_log", (net.n_v_heads,)).exp(),
        bias=loader.vector(prefix + "dt_bias", (net.n_v_heads,)),
        norm=loader.vector(prefix + "norm.weight", (net.v_dim,)),
        eps=config.rms_norm_eps,
        projection=loader.linear(names, (n_rows, hidden), exact=names[2:]),
        output=loader.linear([prefix + "out_proj"], (hidden, net.value_width)),
    )


def _gates_last(config: ModelConfig) -> torch.Tensor:
    """Order of rows that turns the file's [q0 gate0 q1 gate1 ... k v] into [q0 q1 ... k v gate0 gate1 ...]."""
    n_heads, head_dim = config.n_heads, config.head_dim
    q_and_gate = torch.arange(2 * n_heads * head_dim).view(n_heads, 2, head_dim)
    kv = torch.arange(2 * config.n_kv_heads * head_dim) + q_and_gate.numel()
    return torch.cat([q_and_gate[:, 0].flatten(), kv, q_and_gate[:, 1].flatten()])


def _delta_net(config: ModelConfig) -> DeltaNetConfig:
    assert config.delta_net is not None, "the config of this architecture always has one"
    return config.delta_net
