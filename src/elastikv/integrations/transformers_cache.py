"""A drop-in cache for transformers' ``generate`` whose memory follows what is used.

cache = ElasticCache(model.config, n_ctx=131072)            # nothing is allocated yet
model.generate(**inputs, past_key_values=cache)
cache.stats(); cache.shrink_to_fit()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    LinearAttentionCacheLayerMixin,
    get_layer_types_and_kwargs,
)
from typing_extensions import override

from elastikv.errors import InvalidRequest
from elastikv.integrations.cache_file import read_cache_file, write_cache_file
from elastikv.integrations.cache_layers import ElasticLayer
from elastikv.integrations.cache_memory import CacheMemory, Snapshot
from elastikv.integrations.cache_states import ElasticHybridLayer, ElasticSlidingHybridLayer, ElasticStateLayer
from elastikv.integrations.cache_window import ElasticSlidingLayer
from elastikv.memory.base import MemoryStats
from elastikv.memory.budget import Budget
from elastikv.memory.storage import StorageKind

_LAYER_CLASSES: dict[str, Callable[..., Any]] = {
    "full_attention": ElasticLayer,
    "sliding_attention": ElasticSlidingLayer,
    "chunked_attention": ElasticSlidingLayer,
    "linear_attention": ElasticStateLayer,
    "conv": ElasticStateLayer,
    "hybrid": ElasticHybridLayer,
    "hybrid_sliding": ElasticSlidingHybridLayer,
}
# For configs that name no length of their own (Mamba).
_DEFAULT_N_CTX = 1 << 20


class ElasticCache(Cache):
    """Keys and values in memory that grows in place, under a budget.

    config: of the model. n_ctx: tokens that a sequence may ever have (None: the model's own maximum); an upper
    bound, not an allocation. growth, initial: how capacities grow (``step:256``, ``double:1GiB``, ``exact``) and
    from where; even where a growth is a copy, one in 256 tokens is little beside attention. budget: bytes for all
    layers, ``"4GiB"``, ``"auto"``, ``"none"``, or a ``Budget`` that several caches share. storage: ``mmap`` (CPU,
    Linux), ``copy`` (any device) or ``auto``; each layer's memory is on the device that its keys come from.

    A forward pass that is refused memory raises CacheFull and leaves the cache as it was before the pass.
    Gradients flow to the tokens of the pass itself, not to those held from earlier ones. It can be pickled, contents
    and limit of the budget included. Raises InvalidRequest.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        n_ctx: int | None = None,
        *,
        growth: str = "step:256",
        initial: int = 256,
        budget: Budget | str | int | None = "none",
        storage: StorageKind = "auto",
        offloading: bool = False,
    ) -> None:
        if offloading:
            raise InvalidRequest("ElasticCache does not offload; use DynamicCache(offloading=True), or a budget here")
        if config.is_encoder_decoder:
            raise InvalidRequest(
                f"ElasticCache serves decoders only, and {config.model_type} is an encoder-decoder model; "
                "use transformers' EncoderDecoderCache"
            )
        self.config = config.get_text_config(decoder=True)
        self.n_ctx = _default_n_ctx(self.config) if n_ctx is None else n_ctx
        self.budget = budget if isinstance(budget, Budget) else Budget.parse(budget)
        self._options: dict[str, Any] = {"growth": growth, "initial": initial, "storage": storage}
        self.memory = CacheMemory(self.n_ctx, growth, initial, self.budget, storage)
        super().__init__(layers=_make_layers(self.config, self.memory))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append a layer's ``[batch, heads, n, dim]``; returns all that attention may look at, as views.

        Raises InvalidRequest for a layer that the config does not have; CacheFull: the cache is as before the pass.
        """
        if layer_idx >= len(self.layers):
            raise InvalidRequest(
                f"the model has a layer {layer_idx}, but this cache was made for the {len(self.layers)} layers of "
                f"another config ({self.config.model_type}); make it with ElasticCache(model.config)"
            )
        rows: tuple[torch.Tensor, torch.Tensor] = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return rows

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        """The state itself, which models overwrite in place when they decode one token: so room is made first."""
        state: torch.Tensor | None = super().get_conv_state(layer_idx, state_idx)
        if state is not None:
            self.layers[layer_idx].prepare(1)
        return state

    @property
    def batch_size(self) -> int:
        """-1 before the first forward pass."""
        return self.memory.batch_size

    @property
    @override
    def is_compileable(self) -> bool:
        return False

    @property
    @override
    def is_linear(self) -> list[bool]:
        return [
            isinstance(layer, LinearAttentionCacheLayerMixin) and not isinstance(layer, CacheLayerMixin)
            for layer in self.layers
        ]

    def stats(self) -> MemoryStats:
        """What the cache holds. A sequence is a row of the batch; its cells are those of the layer that has most."""
        return self.memory.stats()

    def shrink_to_fit(self) -> int:
        """Give back spare capacity; returns the bytes given back."""
        return self.memory.shrink_to_fit()

    def save(self, path: str | Path) -> None:
        """Write a prompt cache: all that is held, but no spare capacity. The file appears whole or not at all."""
        write_cache_file(Path(path), self.memory, self.config)

    @classmethod
    def load(cls, path: str | Path, config: PreTrainedConfig, n_ctx: int | None = None, **options: Any) -> ElasticCache:
        """A cache that holds what ``save`` wrote.

        options: those of the constructor, and ``device``, where tensors go to (default: the CPU).
        Raises SnapshotError for another model's file or one that is truncated or altered, and CacheFull.
        """
        device = options.pop("device", "cpu")
        cache = cls(config, n_ctx, **options)
        read_cache_file(Path(path), cache.memory, cache.config, torch.device(device))
        return cache

    def __iter__(self) -> Iterator[tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]]:
        """Keys, values and window of each layer, as DynamicCache gives them; None for what a layer has not."""
        for layer in self.layers:
            window = getattr(layer, "sliding_window", None)
            yield (
                getattr(layer, "keys", None),
                getattr(layer, "values", None),
                None if window is None else torch.tensor(window),
            )

    def __reduce__(self) -> tuple[Any, ...]:
        contents = [
            (facts, {name: tensor.detach().clone() for name, tensor in tensors.items()})
            for facts, tensors in self.memory.snapshot()
        ]
        return _unpickle, (self.config, self.n_ctx, self.budget, self._options, contents)

    def __deepcopy__(self, memo: dict[int, Any]) -> ElasticCache:
        """A cache with the same contents in memory of its own, under the same budget. Raises CacheFull."""
        twin = ElasticCache(self.config, self.n_ctx, budget=self.budget, **self._options)
        memo[id(self)] = twin
        try:
            for mine, its in zip(twin.memory.members, self.memory.members, strict=True):
                mine.copy_from(its)
        except BaseException:
            twin.reset()
            raise
        return twin


def _unpickle(
    config: PreTrainedConfig, n_ctx: int, budget: Budget, options: dict[str, Any], contents: list[Snapshot]
) -> ElasticCache:
    cache = ElasticCache(config, n_ctx, budget=budget, **options)
    cache.memory.restore(contents)
    return cache


def _default_n_ctx(config: PreTrainedConfig) -> int:
    return getattr(config, "max_position_embeddings", None) or _DEFAULT_N_CTX


def _make_layers(config: PreTrainedConfig, memory: CacheMemory) -> list[Any]:
    """A layer each, of the kinds that transformers' own caches find in the config."""
    layers: list[Any] = []
    for layer_type, arguments in zip(*get_layer_types_and_kwargs(config), strict=True):
        if layer_type == "dummy":
            layers.append(DummyLayer())
        elif layer_type in _LAYER_CLASSES:
            layers.append(_LAYER_CLASSES[layer_type](memory, **arguments))
        else:
            raise InvalidRequest(
                f"{config.model_type} has layers of kind {layer_type!r}, which ElasticCache cannot hold; "
                "use DynamicCache(config=model.config)"
            )
    if not memory.members:
        raise InvalidRequest(f"no layer of {config.model_type} remembers anything; it needs no cache")
    return layers
