"""The shape of a model, whatever file it came from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from typing_extensions import Self

LayerType = Literal["full", "sliding", "recurrent"]
RopeKind = Literal["default", "linear", "llama3", "yarn"]


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding of the first ``dim`` dimensions of a head, half-split (NeoX) pairing.

    ``freq_factors``: divides each of the ``dim / 2`` frequencies after the scaling of ``kind`` (GGUF's ``rope_freqs``).
    ``attention_factor``: None takes what ``kind`` says (yarn: from ``factor``, ``mscale`` and ``mscale_all_dim``).
    """

    dim: int
    theta: float = 10000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    n_ctx_original: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True
    freq_factors: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class DeltaNetConfig:
    """Gated delta net layers: heads and widths of q/k and of v, and the width of the causal convolution."""

    n_k_heads: int
    n_v_heads: int
    k_dim: int
    v_dim: int
    conv_width: int

    @property
    def key_width(self) -> int:
        """Width of q, and of k: all heads side by side."""
        return self.n_k_heads * self.k_dim

    @property
    def value_width(self) -> int:
        """Width of v: all heads side by side."""
        return self.n_v_heads * self.v_dim

    @property
    def conv_channels(self) -> int:
        """Channels of the convolution: q, k and v side by side."""
        return 2 * self.key_width + self.value_width


@dataclass(frozen=True, slots=True)
class ExpertsConfig:
    """A mixture of experts in place of an MLP, of which each token goes to ``n_used``.

    width, shared_width: of an expert's inner layer, and of that of the one that every token goes to (0: there is none).
    normalised: weights of those that a token goes to add up to 1.
    """

    n_experts: int
    n_used: int
    width: int
    normalised: bool
    shared_width: int = 0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything that decides a model's computation and memory, and no tensor.

    Its text is part of what saved sessions know a model by: an architecture that needs more fields adds them in a
    subclass of its own, so that the sessions of all others still restore.
    ``norm_offset`` is added to the weights of the zero-centred RMS norms (Qwen3.5: 1; a GGUF stores the sum, and its
    reader takes the 1 off again). ``window`` is the width of the layers of type ``"sliding"``.
    """

    architecture: str
    name: str
    n_vocab: int
    n_ctx_train: int
    hidden_size: int
    intermediate_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    layer_types: tuple[LayerType, ...]
    rope: RopeConfig
    rms_norm_eps: float = 1e-6
    norm_offset: float = 0.0
    window: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False
    delta_net: DeltaNetConfig | None = None
    eos_token_ids: tuple[int, ...] = ()

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return len(self.layer_types)

    @classmethod
    def extending(cls, config: ModelConfig, **more: Any) -> Self:
        """A subclass's config: all that ``config`` says, and more."""
        return cls(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config)}, **more)
