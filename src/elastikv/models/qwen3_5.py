"""Qwen3.5's text model: gated delta nets (Yang et al., arXiv:2412.06464), and every fourth layer gated attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from typing_extensions import override

from elastikv.kernels.weights import DeltaNetWeights, MixerWeights
from elastikv.memory.base import LayerMemory, RecurrentLayer
from elastikv.models.architecture import Architecture
from elastikv.models.config import DeltaNetConfig, ModelConfig
from elastikv.models.reader import ModelReader
from elastikv.weights.base import Fields
from elastikv.weights.gguf import Change
from elastikv.weights.gguf.config import layer_types, n_layers
from elastikv.weights.gguf.header import GGUFHeader
from elastikv.weights.gguf.places import NEGATIVE_EXP

_DEFAULT_INTERVAL = 4
_DELTA_NET = (
    "in_proj_qkv.weight",
    "in_proj_z.weight",
    "in_proj_a.weight",
    "in_proj_b.weight",
    "conv1d.weight",
    "A_log",
    "dt_bias",
    "norm.weight",
    "out_proj.weight",
)


class Qwen3_5(Architecture):  # noqa: N801, its name
    """Gated delta nets, and gated attention in every fourth layer; zero-centred norms."""

    name = "qwen3_5"
    classes = ("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration")
    model_types = ("qwen3_5_text", "qwen3_5")
    gguf_name = "qwen35"
    gguf_keys: ClassVar = {
        "linear_num_key_heads": "ssm.group_count",
        "linear_num_value_heads": "ssm.time_step_rank",
        "linear_key_head_dim": "ssm.state_size",
        "linear_conv_kernel_dim": "ssm.conv_kernel",
    }
    gguf_aliases: ClassVar = {".dt_bias": ".dt_proj.bias"}  # as Mamba named it
    norm_offset = 1.0
    qk_norm = True
    has_attention_bias = True
    has_partial_rotary = True

    @override
    def config(self, fields: Fields) -> ModelConfig:
        net = DeltaNetConfig(
            n_k_heads=fields["linear_num_key_heads"],
            n_v_heads=fields["linear_num_value_heads"],
            k_dim=fields["linear_key_head_dim"],
            v_dim=fields["linear_value_head_dim"],
            conv_width=fields["linear_conv_kernel_dim"],
        )
        return replace(super().config(fields), delta_net=net)

    @override
    def gguf_fields(self, header: GGUFHeader) -> dict[str, Any]:
        n, interval = n_layers(header), int(header.of_architecture("full_attention_interval", _DEFAULT_INTERVAL))
        recurrent = header.of_architecture(
            "attention.recurrent_layers", [(layer + 1) % interval != 0 for layer in range(n)]
        )
        return {
            "layer_types": layer_types(recurrent[:n], "linear_attention"),
            "linear_value_head_dim": header.required("ssm.inner_size") // header.required("ssm.time_step_rank"),
        }

    @override
    def memory(self, config: ModelConfig, layer: int) -> LayerMemory:
        if config.layer_types[layer] != "recurrent":
            return super().memory(config, layer)
        net = _delta_net(config)
        return RecurrentLayer(((net.conv_channels, net.conv_width - 1), (net.n_v_heads, net.k_dim, net.v_dim)))

    @override
    def mixer(self, read: ModelReader, layer: int) -> MixerWeights:
        if read.config.layer_types[layer] == "recurrent":
            return _read_delta_net(read, layer)
        return read.attention(layer, gate_order=_gates_last(read.config))

    @override
    def layer_tensors(self, config: ModelConfig) -> Sequence[str]:
        return (*super().layer_tensors(config), *(f"linear_attn.{name}" for name in _DELTA_NET))

    @override
    def gguf_change(self, config: ModelConfig, name: str) -> Change:
        """What llama.cpp's converter does to a tensor.

        Norms have 1 added (not the delta net's own), and v heads are stored round robin, one for each k head at a time
        (k0v0 k1v0 k0v1 k1v1), instead of grouped by k head (k0v0 k0v1 k1v0 k1v1).
        """
        _, is_delta_net, part = name.partition("linear_attn.")
        if not is_delta_net:
            return super().gguf_change(config, name)
        net = _delta_net(config)
        v_order = _round_robin_order(net.n_k_heads, net.n_v_heads, net.v_dim)
        head_order = _round_robin_order(net.n_k_heads, net.n_v_heads, 1)
        qk_rows = torch.arange(2 * net.key_width)
        qkv_order = None if v_order is None else torch.cat([qk_rows, len(qk_rows) + v_order])
        changes = {
            "in_proj_qkv.weight": Change(row_order=qkv_order),
            "conv1d.weight": Change(row_order=qkv_order, squeezed=1),
            "in_proj_z.weight": Change(row_order=v_order),
            "in_proj_a.weight": Change(row_order=head_order),
            "in_proj_b.weight": Change(row_order=head_order),
            "dt_bias": Change(row_order=head_order),
            "A_log": Change(row_order=head_order, values=NEGATIVE_EXP),
            "out_proj.weight": Change(column_order=v_order),
        }
        return changes.get(part, Change())


def _read_delta_net(read: ModelReader, layer: int) -> DeltaNetWeights:
    net, hidden, loader = _delta_net(read.config), read.config.hidden_size, read.loader
    prefix = f"model.layers.{layer}.linear_attn."
    names = [prefix + name for name in ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")]
    n_rows = net.conv_channels + net.value_width + 2 * net.n_v_heads
    return DeltaNetWeights(
        norms=read.norms(layer, "input_layernorm"),
        n_k_heads=net.n_k_heads,
        n_v_heads=net.n_v_heads,
        k_dim=net.k_dim,
        v_dim=net.v_dim,
        conv=loader.vector(prefix + "conv1d.weight", (net.conv_channels, 1, net.conv_width)).squeeze(1),
        rate=-loader.vector(prefix + "A_log", (net.n_v_heads,)).exp(),
        bias=loader.vector(prefix + "dt_bias", (net.n_v_heads,)),
        norm=loader.vector(prefix + "norm.weight", (net.v_dim,)),
        eps=read.config.rms_norm_eps,
        projection=loader.linear(names, (n_rows, hidden), exact=names[2:]),
        output=loader.linear([prefix + "out_proj"], (hidden, net.value_width)),
    )


def _delta_net(config: ModelConfig) -> DeltaNetConfig:
    assert config.delta_net is not None, "the config of this architecture always has one"
    return config.delta_net


def _gates_last(config: ModelConfig) -> torch.Tensor:
    """Order of rows that turns the file's [q0 gate0 q1 gate1 ... k v] into [q0 q1 ... k v gate0 gate1 ...]."""
    n_heads, head_dim = config.n_heads, config.head_dim
    q_and_gate = torch.arange(2 * n_heads * head_dim).view(n_heads, 2, head_dim)
    kv = torch.arange(2 * config.n_kv_heads * head_dim) + q_and_gate.numel()
    return torch.cat([q_and_gate[:, 0].flatten(), kv, q_and_gate[:, 1].flatten()])


def _round_robin_order(n_k_heads: int, n_v_heads: int, rows_per_head: int) -> torch.Tensor | None:
    """v heads grouped by their k head -> dealt out, one per k head at a time. None if that changes nothing."""
    if n_v_heads == n_k_heads:
        return None
    rows = torch.arange(n_v_heads * rows_per_head).reshape(n_k_heads, n_v_heads // n_k_heads, rows_per_head)
    return rows.transpose(0, 1).reshape(-1)
