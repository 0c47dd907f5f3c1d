"""Layers of ``ElasticCache`` that remember a state of fixed size, alone or beside attention."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers.cache_utils import LinearAttentionLayer
from typing_extensions import override

from elastikv.errors import CacheFull, InvalidRequest
from elastikv.integrations.cache_layers import ElasticLayer, wrong_batch_size
from elastikv.integrations.cache_memory import CacheMemory
from elastikv.integrations.cache_window import ElasticSlidingLayer

_PER_STATE = (
    "conv_kernel_size",
    "has_previous_state",
    "is_conv_states_initialized",
    "is_recurrent_states_initialized",
)


class ElasticStateLayer(LinearAttentionLayer):
    """Linear attention, Mamba or convolution. The tensors are transformers' own; the budget counts them."""

    is_compileable = False
    record_past: bool

    def __init__(self, memory: CacheMemory, number_of_states: int = 1) -> None:
        super().__init__(number_of_states=number_of_states)
        self.memory = memory
        memory.add_state(self)

    @property
    def committed_bytes(self) -> int:
        """Of the states; cells of the same layer, if it has any, count for themselves."""
        return sum(states[i].nbytes for states, i in self._states())

    def lazy_initialization(
        self,
        conv_states: torch.Tensor | None = None,
        recurrent_states: torch.Tensor | None = None,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
    ) -> None:
        """Allocate states of these shapes. CacheFull: the cache is empty."""
        n_bytes = 0
        if conv_states is not None:
            width = conv_kernel_size or conv_states.shape[-1]
            n_bytes += math.prod(conv_states.shape[:-1]) * width * conv_states.element_size()
        if recurrent_states is not None:
            n_bytes += recurrent_states.nbytes
        self._require(n_bytes)
        with torch.inference_mode(False):
            super().lazy_initialization(conv_states, recurrent_states, state_idx, conv_kernel_size)

    def update_conv_state(
        self, conv_states: torch.Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Append to a convolution's state. Asks for room first: once a state is overwritten there is no way back."""
        if self.has_previous_state[state_idx]:
            held = self.conv_states[state_idx]
            if len(held) != len(conv_states):
                raise wrong_batch_size(len(held), len(conv_states))
            # Some models hand over a whole state of kernel size instead of the new tokens.
            n_new = conv_states.shape[-1]
            self.prepare(n_new if n_new > self.conv_kernel_size[state_idx] else 1)
        state: torch.Tensor = super().update_conv_state(conv_states, state_idx, conv_kernel_size, **kwargs)
        return state

    def prepare(self, n_new: int) -> None:
        """Before a state changes: if this layer leads the pass, room for its tokens in all others."""
        if self.memory.leads(self):
            self.memory.make_room(n_new, self.memory.owners)

    def _require(self, n_bytes: int) -> None:
        """CacheFull can only come in a cache's first pass; it leaves the cache empty."""
        try:
            self.memory.budget.require(n_bytes)
        except CacheFull:
            self.memory.reset()
            raise

    def crop(self, tokens_to_remove: int) -> None:
        """Raises InvalidRequest where there is a recurrent state, which cannot be cut back."""
        if any(self.is_recurrent_states_initialized.values()) and tokens_to_remove:
            raise InvalidRequest("a recurrent state cannot be cut back; reset() the cache and compute it again")
        super().crop(tokens_to_remove)

    @override
    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self._select_states(beam_idx)

    @override
    def batch_repeat_interleave(self, repeats: int) -> None:
        self._select_states(torch.arange(self._batch_size()).repeat_interleave(repeats))

    @override
    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._select_states(torch.arange(self._batch_size())[indices.cpu()])

    def _states(self) -> list[tuple[dict[int, torch.Tensor], int]]:
        """Where the tensors that exist are: ``(dictionary, key)``."""
        kinds = (
            (self.conv_states, self.is_conv_states_initialized),
            (self.recurrent_states, self.is_recurrent_states_initialized),
        )
        return [(states, i) for states, exists in kinds for i in range(self.number_of_states) if exists[i]]

    def _batch_size(self) -> int:
        return next((len(states[i]) for states, i in self._states()), 0)

    def _select_states(self, batch_index: torch.Tensor) -> None:
        if not self._batch_size():
            return
        n_bytes = self.committed_bytes * len(batch_index) // self._batch_size() - self.committed_bytes
        self.memory.budget.require(max(n_bytes, 0))
        with torch.inference_mode(False):
            for states, i in self._states():
                states[i] = states[i].index_select(0, batch_index.to(states[i].device))

    def copy_from(self, other: ElasticStateLayer) -> None:
        """Hold what ``other`` holds, in memory of its own. CacheFull: this layer is empty."""
        self._require(other.committed_bytes)
        for name in ("device", "dtype", "record_past"):
            setattr(self, name, getattr(other, name))
        for name in _PER_STATE:
            setattr(self, name, dict(getattr(other, name)))
        with torch.inference_mode(False):
            for kind in ("conv_states", "recurrent_states"):
                states = getattr(other, kind)
                setattr(self, kind, {i: None if states[i] is None else states[i].clone() for i in states})

    def snapshot(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """What ``restore`` needs to hold the same again: facts for a header, and the tensors."""
        facts = {"kernel_sizes": list(self.conv_kernel_size.values()), "seen": list(self.has_previous_state.values())}
        names = {id(self.conv_states): "conv", id(self.recurrent_states): "recurrent"}
        return facts, {f"{names[id(states)]}{i}": states[i] for states, i in self._states()}

    def restore(self, facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Into an empty layer. CacheFull: the cache is empty."""
        for i in range(self.number_of_states):
            conv, recurrent = tensors.get(f"conv{i}"), tensors.get(f"recurrent{i}")
            ElasticStateLayer.lazy_initialization(self, conv, recurrent, i, facts["kernel_sizes"][i])
            if conv is not None:
                self.conv_states[i] = conv
            if recurrent is not None:
                self.recurrent_states[i] = recurrent
            self.has_previous_state[i] = facts["seen"][i]

    def reset(self) -> None:
        """Forget everything and give the memory back."""
        LinearAttentionLayer.__init__(self, self.number_of_states)

    def offload(self) -> None:
        """Raises InvalidRequest: the memory is where the states came from."""
        raise InvalidRequest("this cache does not offload; use DynamicCache(offloading=True)")

    prefetch = offload


class _BesideAttention(ElasticStateLayer):
    """What a layer does that has both a state and cells: everything to both of its halves."""

    attention: type[ElasticLayer]

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Attention calls with two positional arguments, states are passed by name."""
        (self.attention if len(args) == 2 else ElasticStateLayer).lazy_initialization(self, *args, **kwargs)

    @override
    def activate_past_recording(self) -> None:
        self._both("activate_past_recording")

    @override
    def crop(self, tokens_to_remove: int) -> None:
        self._both("crop", tokens_to_remove)

    @override
    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self._both("reorder_cache", beam_idx)

    @override
    def batch_repeat_interleave(self, repeats: int) -> None:
        self._both("batch_repeat_interleave", repeats)

    @override
    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._both("batch_select_indices", indices)

    @override
    def copy_from(self, other: Any) -> None:
        self._both("copy_from", other)

    @override
    def snapshot(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        facts, tensors = self.attention.snapshot(self)
        more_facts, more_tensors = ElasticStateLayer.snapshot(self)
        return facts | more_facts, tensors | more_tensors

    @override
    def restore(self, facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        self._both("restore", facts, tensors)

    @override
    def reset(self) -> None:
        self._both("reset")

    def _both(self, method: str, *args: Any) -> None:
        for half in (self.attention, ElasticStateLayer):
            if hasattr(half, method):
                getattr(half, method)(self, *args)


class ElasticHybridLayer(_BesideAttention, ElasticLayer):
    """A state and full attention in one layer (Falcon-H1)."""

    attention = ElasticLayer

    def __init__(self, memory: CacheMemory, number_of_states: int = 1) -> None:
        ElasticLayer.__init__(self, memory)
        ElasticStateLayer.__init__(self, memory, number_of_states)


class ElasticSlidingHybridLayer(_BesideAttention, ElasticSlidingLayer):
    """A state and a sliding window in one layer."""

    attention = ElasticSlidingLayer

    def __init__(self, memory: CacheMemory, sliding_window: int, number_of_states: int = 1) -> None:
        ElasticSlidingLayer.__init__(self, memory, sliding_window)
        ElasticStateLayer.__init__(self, memory, number_of_states)
