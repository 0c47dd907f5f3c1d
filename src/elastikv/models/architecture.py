"""What an architecture says of itself, with what most decoders have in common.

        token ids
            |
        embedding
            |
            +--- norm --- mixer ----(+)--- norm --- feed-forward ----(+)   x n_layers
                                                                      |
                                                          norm --- head --- logits

The base class is the plain one: attention with RoPE, then a gated MLP, in every layer. A subclass says where its
architecture differs, and is listed in ``registry``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from elastikv.errors import UnsupportedModel
from elastikv.kernels.weights import Activation, FeedForwardWeights, MixerWeights
from elastikv.memory.base import KVLayer, LayerMemory
from elastikv.models.config import LayerType, ModelConfig, RopeConfig
from elastikv.models.reader import ATTENTION, MLP, ModelReader
from elastikv.models.rope import read_rope
from elastikv.weights.base import Fields
from elastikv.weights.gguf import Change, GGUFFields, GGUFFile, Place
from elastikv.weights.gguf.header import GGUFHeader
from elastikv.weights.gguf.places import PLUS_ONE, find_places
from elastikv.weights.hf import HFConfig

_LAYER_TYPES: dict[str, LayerType] = {
    "full_attention": "full",
    "sliding_attention": "sliding",
    "linear_attention": "recurrent",
}
_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


class Architecture:
    """Everything that is known of one architecture; it has no state, so one object serves all its models."""

    name: ClassVar[str]
    classes: ClassVar[tuple[str, ...]]
    """What ``architectures`` of a config.json has."""
    model_types: ClassVar[tuple[str, ...]]
    """``model_type`` of a config.json that names no class; the first is transformers' own of the text model."""
    gguf_name: ClassVar[str]
    """``general.architecture`` of a GGUF."""
    gguf_keys: ClassVar[Mapping[str, str]] = {}
    """Fields of config.json -> keys of a GGUF's metadata, without the architecture; beside the common ones."""
    gguf_aliases: ClassVar[Mapping[str, str]] = {}
    """Endings of tensor names -> what the gguf package knows these tensors by, where it is another name."""
    activation: ClassVar[Activation] = "silu"
    activation_key: ClassVar[str] = "hidden_act"
    norm_offset: ClassVar[float] = 0.0
    """1 for norms whose weights are stored without it."""
    qkv_bias: ClassVar[bool] = False
    """Whether q, k and v have biases, whatever ``attention_bias`` says."""
    qk_norm: ClassVar[bool] = False
    """Whether q and k are normalised before they are rotated."""
    has_attention_bias: ClassVar[bool] = False
    has_mlp_bias: ClassVar[bool] = False
    has_window: ClassVar[bool] = False
    has_partial_rotary: ClassVar[bool] = False
    """Whether ``attention_bias``, ``mlp_bias``, ``sliding_window`` and ``partial_rotary_factor`` mean anything:
    elsewhere transformers ignores them."""

    # The config

    def config(self, fields: Fields) -> ModelConfig:
        """The config that these fields make.

        Raises UnsupportedModel for what this architecture does not compute, CorruptFile for fields that are missing or
        contradict each other.
        """
        self._check_activation(fields)
        head_dim = fields["head_dim"] or fields["hidden_size"] // fields["num_attention_heads"]
        layer_types, eos = self.layer_types(fields), fields["eos_token_id"]
        has_window = self.has_window or "sliding" in layer_types  # kept where no layer uses it: sessions know it so
        bias = self.has_attention_bias and bool(fields["attention_bias"])
        return ModelConfig(
            architecture=self.name,
            name=fields.name,
            n_vocab=fields["vocab_size"],
            n_ctx_train=fields["max_position_embeddings"],
            hidden_size=fields["hidden_size"],
            intermediate_size=fields["intermediate_size"],
            n_heads=fields["num_attention_heads"],
            n_kv_heads=fields["num_key_value_heads"],
            head_dim=head_dim,
            layer_types=layer_types,
            rope=self.rope(fields, head_dim),
            rms_norm_eps=fields["rms_norm_eps"],
            norm_offset=self.norm_offset,
            window=fields["sliding_window"] if has_window else None,
            qkv_bias=bias or self.qkv_bias,
            out_bias=fields.get("attention_out_bias", bias),
            mlp_bias=self.has_mlp_bias and bool(fields["mlp_bias"]),
            qk_norm=self.qk_norm,
            tie_embeddings=bool(fields["tie_word_embeddings"]),
            eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        )

    def layer_types(self, fields: Fields) -> tuple[LayerType, ...]:
        """The type of each layer. Raises UnsupportedModel for types that are not known here."""
        n_layers, named = fields["num_hidden_layers"], fields["layer_types"]
        unknown = set(named) - set(_LAYER_TYPES)
        if unknown or len(named) != n_layers:
            raise UnsupportedModel(
                f"{fields.name}: layer_types {sorted(set(named))} for {n_layers} layers are not supported"
            )
        return tuple(_LAYER_TYPES[layer_type] for layer_type in named)

    def rope(self, fields: Fields, head_dim: int) -> RopeConfig:
        """The rotary position embedding. Raises UnsupportedModel, CorruptFile."""
        return read_rope(fields, self.name, head_dim, partial=self.has_partial_rotary)

    def _check_activation(self, fields: Fields) -> None:
        given = fields.get(self.activation_key, self.activation)
        if _ACTIVATIONS.get(given, given) != self.activation:
            raise UnsupportedModel(f"{fields.name}: activation {given!r} is not supported, only {self.activation!r}")

    def read_hf_config(self, config: HFConfig) -> ModelConfig:
        """The config of a Hugging Face folder."""
        return self.config(config.fields(self.model_types[0]))

    def read_gguf_config(self, file: GGUFFile) -> ModelConfig:
        """The config of a GGUF file."""
        header = file.header
        return self.config(GGUFFields(header, self.gguf_keys, self.gguf_fields(header), file.rope_freqs()))

    def gguf_fields(self, header: GGUFHeader) -> Mapping[str, Any]:
        """Fields of config.json that no single key of a GGUF holds."""
        return {}

    # Memory

    def memory(self, config: ModelConfig, layer: int) -> LayerMemory:
        """The memory that a layer needs."""
        window = config.window if config.layer_types[layer] == "sliding" else None
        return KVLayer(config.n_kv_heads, config.head_dim, config.head_dim, window)

    def memory_layers(self, config: ModelConfig) -> list[LayerMemory]:
        """The memory that each layer needs, in layer order."""
        return [self.memory(config, layer) for layer in range(config.n_layers)]

    # Tensors

    def layer_tensors(self, config: ModelConfig) -> Sequence[str]:
        """Names, behind ``model.layers.N.``, of what a layer may have."""
        return ("input_layernorm.weight", "post_attention_layernorm.weight", *ATTENTION, *MLP)

    def tensors(self, config: ModelConfig) -> Iterator[str]:
        """Names of all tensors that a model of this config may have."""
        yield from ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
        for layer in range(config.n_layers):
            yield from (f"model.layers.{layer}.{name}" for name in self.layer_tensors(config))

    def gguf_change(self, config: ModelConfig, name: str) -> Change:
        """What llama.cpp's converter does to a tensor."""
        is_zero_centred = self.norm_offset and name.endswith("norm.weight")
        return Change(values=PLUS_ONE) if is_zero_centred else Change()

    def places(self, config: ModelConfig) -> dict[str, Place]:
        """Where each tensor lies in a GGUF."""
        change_of = functools.partial(self.gguf_change, config)
        return find_places(self.gguf_name, config.n_layers, self.tensors(config), self.gguf_aliases, change_of)

    # Layers

    def embedding_scale(self, config: ModelConfig) -> float:
        """What embeddings are multiplied with."""
        return 1.0

    def mixer(self, read: ModelReader, layer: int) -> MixerWeights:
        """The first half of a block."""
        return read.attention(layer)

    def feed_forward(self, read: ModelReader, layer: int) -> FeedForwardWeights:
        """The second half of a block: an MLP, or experts."""
        return read.mlp(layer, activation=self.activation)
