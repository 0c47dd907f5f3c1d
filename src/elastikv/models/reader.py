"""Parts that many architectures have, read by their names in a Hugging Face checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from elastikv.kernels.weights import Activation, AttentionWeights, ExpertsWeights, ExpertWeights, MlpWeights, Norms
from elastikv.models.config import ExpertsConfig, ModelConfig, RopeConfig
from elastikv.models.rope import make_rope
from elastikv.weights.loader import WeightLoader


def _with_biases(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}.{kind}" for name in names for kind in ("weight", "bias"))


ATTENTION = (
    *_with_biases(*(f"self_attn.{part}_proj" for part in "qkvo")),
    "self_attn.q_norm.weight",
    "self_attn.k_norm.weight",
)
MLP = _with_biases("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
"""Names, behind ``model.layers.N.``, of what attention and a gated MLP may have."""


def experts_tensors(experts: ExpertsConfig) -> Iterator[str]:
    """Names of what a mixture of experts may have."""
    yield from ("mlp.gate.weight", "mlp.shared_expert_gate.weight")
    for mlp in ("mlp.shared_expert", *(f"mlp.experts.{expert}" for expert in range(experts.n_experts))):
        yield from (f"{mlp}.{part}_proj.weight" for part in ("gate", "up", "down"))


class ModelReader:
    """Reads weights as layers want them. Each raises CorruptFile where a tensor is missing or of another shape."""

    def __init__(self, config: ModelConfig, loader: WeightLoader) -> None:
        self.config = config
        self.loader = loader
        self.rope = functools.cache(functools.partial(make_rope, device=loader.device))
        """Layers that rotate alike share one ``Rope``."""

    def norm(self, name: str) -> torch.Tensor:
        """Weights of a norm over the hidden size."""
        return self.loader.vector(f"{name}.weight", (self.config.hidden_size,), offset=self.config.norm_offset)

    def norms(self, layer: int, before: str, after: str | None = None) -> Norms:
        """Around a sublayer."""
        prefix = f"model.layers.{layer}."
        return Norms(
            self.norm(prefix + before), self.config.rms_norm_eps, None if after is None else self.norm(prefix + after)
        )

    def attention(
        self,
        layer: int,
        norms: Norms | None = None,
        *,
        rope: RopeConfig | None = None,
        scale: float | None = None,
        gate_order: torch.Tensor | None = None,
    ) -> AttentionWeights:
        """norms, rope, scale: where they are not ``input_layernorm``, the config's, and one over the root of the width.

        gate_order: for gated attention, whose file keeps gates in q_proj: the order of rows that puts them last.
        """
        config, loader, prefix = self.config, self.loader, f"model.layers.{layer}.self_attn."
        width, kv_width = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        n_rows = width + 2 * kv_width + (0 if gate_order is None else width)

        def norm(name: str) -> torch.Tensor:
            return loader.vector(f"{prefix}{name}.weight", (config.head_dim,), offset=config.norm_offset)

        return AttentionWeights(
            norms=norms or self.norms(layer, "input_layernorm"),
            projection=loader.linear(
                [prefix + name for name in ("q_proj", "k_proj", "v_proj")],
                (n_rows, config.hidden_size),
                bias=config.qkv_bias,
                order=gate_order,
            ),
            output=loader.linear([prefix + "o_proj"], (config.hidden_size, width), bias=config.out_bias),
            n_heads=config.n_heads,
            n_kv_heads=config.n_kv_heads,
            head_dim=config.head_dim,
            rope=self.rope(rope or config.rope),
            scale=config.head_dim**-0.5 if scale is None else scale,
            qk_norms=(norm("q_norm"), norm("k_norm"), config.rms_norm_eps) if config.qk_norm else None,
            gated=gate_order is not None,
        )

    def mlp(self, layer: int, norms: Norms | None = None, *, activation: Activation = "silu") -> MlpWeights:
        """norms: where they are not ``post_attention_layernorm`` alone."""
        config, loader, prefix = self.config, self.loader, f"model.layers.{layer}.mlp."
        hidden, inner = config.hidden_size, config.intermediate_size
        gate_and_up = [prefix + "gate_proj", prefix + "up_proj"]
        return MlpWeights(
            norms=norms or self.norms(layer, "post_attention_layernorm"),
            gate_up=loader.linear(gate_and_up, (2 * inner, hidden), bias=config.mlp_bias),
            down=loader.linear([prefix + "down_proj"], (hidden, inner), bias=config.mlp_bias),
            activation=activation,
        )

    def experts(self, layer: int, experts: ExpertsConfig, norms: Norms | None = None) -> ExpertsWeights:
        """norms: where they are not ``post_attention_layernorm`` alone."""
        loader, hidden, prefix = self.loader, self.config.hidden_size, f"model.layers.{layer}.mlp."

        def expert(name: str, width: int) -> ExpertWeights:
            gate_and_up = [f"{prefix}{name}.{part}_proj" for part in ("gate", "up")]
            return ExpertWeights(
                gate_up=loader.linear(gate_and_up, (2 * width, hidden)),
                down=loader.linear([f"{prefix}{name}.down_proj"], (hidden, width)),
            )

        router = loader.vector(f"{prefix}gate.weight", (experts.n_experts, hidden))
        shared = None
        if experts.shared_width:
            gate = loader.vector(f"{prefix}shared_expert_gate.weight", (1, hidden))
            router, shared = torch.cat([router, gate]), expert("shared_expert", experts.shared_width)
        return ExpertsWeights(
            norms=norms or self.norms(layer, "post_attention_layernorm"),
            router=router,
            experts=tuple(expert(f"experts.{index}", experts.width) for index in range(experts.n_experts)),
            n_used=experts.n_used,
            normalised=experts.normalised,
            shared=shared,
        )
