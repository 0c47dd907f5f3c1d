"""The Qwen3.5 text model: gated delta nets, and every so often a layer of gated attention."""

from __future__ import annotations

import torch
from torch.nn.functional import softplus

from elastikv.kernels.base import Kernels
from elastikv.memory.base import KVLayer, LayerMemory, RecurrentLayer
from elastikv.models.attention import read_attention
from elastikv.models.build import build_decoder
from elastikv.models.decoder import Decoder, Mixer, Step
from elastikv.weights.config import DeltaNetConfig, ModelConfig
from elastikv.weights.linear import Linear
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
        config: ModelConfig,
        kernels: Kernels,
        layer: int,
        *,
        projection: Linear,
        output: Linear,
        conv_weight: torch.Tensor,
        decay_rate: torch.Tensor,
        decay_bias: torch.Tensor,
        norm: torch.Tensor,
    ) -> None:
        net = _delta_net(config)
        self._net = net
        self._kernels = kernels
        self._layer = layer
        self._projection = projection
        self._output = output
        self._conv_weight = conv_weight
        self._decay_rate = decay_rate
        self._decay_bias = decay_bias
        self._norm = norm
        self._eps = config.rms_norm_eps
        self._projected_split = [net.conv_channels, net.value_width, net.n_v_heads, net.n_v_heads]
        self._conv_split = [net.key_width, net.key_width, net.value_width]
        self.buffer_widths = {"wide": projection.n_out, "conv": net.conv_channels, "inner": net.value_width}

    def __call__(self, x: torch.Tensor, step: Step, out: torch.Tensor) -> None:
        net, kernels, layer, memory, ubatch = self._net, self._kernels, self._layer, step.recurrent, step.ubatch
        projected = self._projection(x, out=step.view("wide", self._projection.n_out))
        qkv, z, b, a = projected.split(self._projected_split, dim=1)
        beta = b.sigmoid()
        decay = softplus(a + self._decay_bias).mul_(self._decay_rate)

        mixed = step.view("conv", net.conv_channels)
        kernels.causal_conv(qkv, self._conv_weight, memory, layer, ubatch, out=mixed)
        q, k, v = mixed.split(self._conv_split, dim=1)
        q, k = q.unflatten(1, (net.n_k_heads, net.k_dim)), k.unflatten(1, (net.n_k_heads, net.k_dim))
        v = v.unflatten(1, (net.n_v_heads, net.v_dim))
        inner = step.view("inner", net.n_v_heads, net.v_dim)
        kernels.gated_delta_rule(q, k, v, decay, beta, memory, layer, ubatch, out=inner)
        gate = z.unflatten(1, (net.n_v_heads, net.v_dim))
        kernels.gated_rms_norm(inner, gate, self._norm, self._eps, out=inner)
        self._output(inner.view(x.shape[0], -1), out=out)


def _read_delta_net(config: ModelConfig, loader: WeightLoader, layer: int, ordinal: int) -> DeltaNet:
    net, hidden = _delta_net(config), config.hidden_size
    prefix = f"model.layers.{layer}.linear_attn."
    names = [prefix + name for name in ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")]
    n_rows = net.conv_channels + net.value_width + 2 * net.n_v_heads
    return DeltaNet(
        config,
        loader.kernels,
        ordinal,
        projection=loader.linear(names, (n_rows, hidden), exact=names[2:]),
        output=loader.linear([prefix + "out_proj"], (hidden, net.value_width)),
        conv_weight=loader.vector(prefix + "conv1d.weight", (net.conv_channels, 1, net.conv_width)).squeeze(1),
        decay_rate=-loader.vector(prefix + "A_log", (net.n_v_heads,)).exp(),
        decay_bias=loader.vector(prefix + "dt_bias", (net.n_v_heads,)),
        norm=loader.vector(prefix + "norm.weight", (net.v_dim,)),
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
