"""The Qwen3.5 text model: gated delta nets, and every so often a layer of gated attention."""

from __future__ import annotations

import torch

from elastikv.kernels.base import DeltaNetWeights, Kernels
from elastikv.memory.base import KVLayer, LayerMemory, RecurrentLayer
from elastikv.models.attention import read_attention
from elastikv.models.build import build_decoder
from elastikv.models.decoder import Decoder, Mixer, Step
from elastikv.weights.config import DeltaNetConfig, ModelConfig
from elastikv.weights.linear import FusedLinear
from elastikv.weights.loader import WeightLoader


def memory_layers(config: ModelConfig) -> list[LayerMemory]:
    net = _delta_net(config)
    state = RecurrentLayer(
        ((net.conv_channels, net.conv_width - 1), (net.n_v_heads, net.k_dim, net.v_dim)),
    )
    cells = KVLayer(config.n_kv_heads, config.head_dim, config.head_dim)
    return [state if kind == "recurrent" else cells for kind in config.layer_types]


def build(config: ModelConfig, loader: WeightLoader) -> Decoder:
    def mixer(layer: int) -> Mixer:
        kind = config.layer_types[layer]
        ordinal = config.layer_types[:layer].count(kind)
        if kind == "recurrent":
            return _read_delta_net(config, loader, layer, ordinal)
        return read_attention(config, loader, layer, ordinal, gate_order=_gates_last(config))

    return build_decoder(config, loader, memory_layers(config), mixer)


class DeltaNet:
    """A ``Mixer``: one projection gives q, k, v, a gate z, and per v head b (how much to write) and a (to forget)."""

    def __init__(
        self,
        net: DeltaNetConfig,
        kernels: Kernels,
        layer: int,
        *,
        projection: FusedLinear,
        output: FusedLinear,
        weights: DeltaNetWeights,
    ) -> None:
        self._bound = kernels.bind_delta_net(projection.parts, output.parts, weights)
        self._kernels = kernels
        self._layer = layer
        self._projection = projection
        self._output = output
        self._weights = weights
        self._projected_split = [net.conv_channels, net.value_width, net.n_v_heads, net.n_v_heads]
        self._conv_split = [net.key_width, net.key_width, net.value_width]
        self.buffer_widths = {
            "wide": projection.n_out,
            "conv": net.conv_channels,
            "gates": 2 * net.n_v_heads,
            "inner": net.value_width,
        }

    def __call__(self, x: torch.Tensor, step: Step, out: torch.Tensor) -> None:
        kernels, weights, layer, memory, ubatch = self._kernels, self._weights, self._layer, step.recurrent, step.ubatch
        wide, mixed, gates, inner = (step.view(name, width) for name, width in self.buffer_widths.items())
        if self._bound is not None and self._bound(x, memory, layer, ubatch, wide, mixed, gates, inner, out):
            return
        qkv, z, b, a = self._projection(x, out=wide).split(self._projected_split, dim=1)
        decay, beta = gates.view(2, *b.shape)
        kernels.delta_gates(a, b, weights.rate, weights.bias, decay, beta)

        kernels.causal_conv(qkv, weights.conv, memory, layer, ubatch, out=mixed)
        q, k, v = mixed.split(self._conv_split, dim=1)
        keys, values = (weights.n_k_heads, weights.k_dim), (weights.n_v_heads, weights.v_dim)
        q, k, v, heads = q.unflatten(1, keys), k.unflatten(1, keys), v.unflatten(1, values), inner.unflatten(1, values)
        kernels.gated_delta_rule(q, k, v, decay, beta, memory, layer, ubatch, out=heads)
        kernels.gated_rms_norm(heads, z.unflatten(1, values), weights.norm, weights.eps, out=heads)
        self._output(inner, out=out)


def _read_delta_net(config: ModelConfig, loader: WeightLoader, layer: int, ordinal: int) -> DeltaNet:
    net, hidden = _delta_net(config), config.hidden_size
    prefix = f"model.layers.{layer}.linear_attn."
    names = [prefix + name for name in ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")]
    n_rows = net.conv_channels + net.value_width + 2 * net.n_v_heads
    weights = DeltaNetWeights(
        net.n_k_heads,
        net.n_v_heads,
        net.k_dim,
        net.v_dim,
        conv=loader.vector(prefix + "conv1d.weight", (net.conv_channels, 1, net.conv_width)).squeeze(1),
        rate=-loader.vector(prefix + "A_log", (net.n_v_heads,)).exp(),
        bias=loader.vector(prefix + "dt_bias", (net.n_v_heads,)),
        norm=loader.vector(prefix + "norm.weight", (net.v_dim,)),
        eps=config.rms_norm_eps,
    )
    return DeltaNet(
        net,
        loader.kernels,
        ordinal,
        projection=loader.linear(names, (n_rows, hidden), exact=names[2:]),
        output=loader.linear([prefix + "out_proj"], (hidden, net.value_width)),
        weights=weights,
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
