"""A transformers cache over one sequence of our memory.

transformers' modules ask a cache for keys, values and states; here these are the sequence's own
cells and state buffers, so they grow, roll back, are shared and saved like any other's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DummyLayer, LinearAttentionLayer

from elastikv.batch import Span
from elastikv.errors import UnsupportedModel
from elastikv.memory.base import Cells, KVLayer, LayerMemory, Memory, RecurrentLayer
from elastikv.memory.hybrid import halves
from elastikv.memory.states import LayerState


@dataclass(frozen=True, slots=True)
class StateSlot:
    """One tensor of a layer's state: ``conv_states[index]`` or ``recurrent_states[index]``."""

    kind: str
    index: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What one of the model's layers remembers, and which ordinals it has in memory."""

    attention: int | None = None
    window: int | None = None
    recurrent: int | None = None
    slots: tuple[StateSlot, ...] = ()


def plan_layers(probe: Cache, name: str) -> tuple[list[LayerPlan], list[LayerMemory]]:
    """What each layer remembers, read off a DynamicCache that a few tokens were run with. Raises UnsupportedModel."""
    plans: list[LayerPlan] = []
    needs: list[LayerMemory] = []
    n_attention = n_recurrent = 0
    for layer in probe.layers:
        attention = recurrent = window = None
        if getattr(layer, "indexer_keys", None) is not None or hasattr(layer, "compressed_kv"):
            raise UnsupportedModel(f"{name}: layers of kind {type(layer).__name__} remember more than keys and values")
        if isinstance(layer, CacheLayerMixin) and layer.keys is not None:
            attention, window = n_attention, getattr(layer, "sliding_window", None)
            needs.append(_kv_layer(layer, window, name))
            n_attention += 1
        slots = tuple(_slots(layer)) if isinstance(layer, LinearAttentionLayer) else ()
        if slots:
            recurrent = n_recurrent
            needs.append(RecurrentLayer(tuple(tuple(_tensor(layer, slot).shape[1:]) for slot in slots)))
            n_recurrent += 1
        plans.append(LayerPlan(attention, window, recurrent, slots))
    return plans, needs


def _kv_layer(layer: Any, window: int | None, name: str) -> KVLayer:
    n_heads, n_heads_v = layer.keys.shape[1], layer.values.shape[1]
    if n_heads != n_heads_v:
        raise UnsupportedModel(f"{name}: a layer with {n_heads} heads of keys and {n_heads_v} of values")
    return KVLayer(n_heads, layer.keys.shape[3], layer.values.shape[3], window)


def _slots(layer: LinearAttentionLayer) -> list[StateSlot]:
    slots = []
    for index in range(layer.number_of_states):
        for kind in ("conv_states", "recurrent_states"):
            tensor = getattr(layer, kind)[index]
            if tensor is not None:
                slots.append(StateSlot(kind, index, tensor.dtype))
    return slots


def _tensor(layer: LinearAttentionLayer, slot: StateSlot) -> torch.Tensor:
    state: torch.Tensor = getattr(layer, slot.kind)[slot.index]
    return state


class SequenceCache(Cache):
    """The cache for one span of a ubatch. After the forward pass ``store_states`` puts the states back."""

    def __init__(self, plans: Sequence[LayerPlan], memory: Memory, span: Span) -> None:
        self._plans = plans
        self._span = span
        self._cells, self._states = halves(memory)
        super().__init__(layers=[self._layer(plan) for plan in plans])

    def _layer(self, plan: LayerPlan) -> Any:
        cells, state = None, None
        if plan.attention is not None and self._cells:
            cells = self._cells.cells(plan.attention, self._span.seq_id)
        if plan.recurrent is not None and self._states:
            state = self._states.source(plan.recurrent, self._span.seq_id)
        if cells and state:
            return _HybridLayer(cells, plan, state, self._span.pos)
        if cells:
            return _CellsLayer(cells, plan, self._span.pos)
        return _StateLayer(plan, state, self._span.pos) if state else DummyLayer()

    def store_states(self) -> None:
        """Write the states after the span to where the memory wants them."""
        for plan, layer in zip(self._plans, self.layers, strict=True):
            if plan.recurrent is None or self._states is None:
                continue
            target = self._states.target(plan.recurrent, self._span.seq_id)
            for slot, tensor in zip(plan.slots, target, strict=True):
                tensor.copy_(_tensor(layer, slot)[0])

    @property
    def is_compileable(self) -> bool:
        """Never: tensors are replaced as the cells grow, where ``torch.compile`` wants fixed addresses."""
        return False


class _CellsLayer(CacheLayerMixin):
    """Keys and values as ``[1, heads, n, dim]`` views of the cells, or converted where the types differ."""

    is_compileable = False

    def __init__(self, cells: Cells, plan: LayerPlan, length: int) -> None:
        super().__init__()
        self._cells = cells
        self._length = length
        self._window = plan.window
        self.is_sliding = plan.window is not None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """The cells are there."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        cells, n_new = self._cells, key_states.shape[2]
        start = self._length - self._n_visible() - cells.first
        row = self._length - cells.first
        stop = row + n_new
        cells.k.store(slice(row, stop), key_states[0].transpose(0, 1))
        cells.v.store(slice(row, stop), value_states[0].transpose(0, 1))
        self._length += n_new
        visible = slice(start, stop)
        return (
            cells.k.view(visible, key_states.dtype).transpose(0, 1)[None],
            cells.v.view(visible, value_states.dtype).transpose(0, 1)[None],
        )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._n_visible() + query_length, self._length - self._n_visible()

    def get_seq_length(self) -> int:
        return self._length

    def get_max_length(self) -> int:
        return -1 if self._window is None else self._window

    def _n_visible(self) -> int:
        """Cells before the new ones that attention may look at."""
        return self._length if self._window is None else min(self._length, self._window - 1)


class _StateLayer(LinearAttentionLayer):
    """States in the types that the model computes them in; copies, for a call may be rolled back."""

    is_compileable = False

    def __init__(self, plan: LayerPlan, state: LayerState, length: int) -> None:
        super().__init__(number_of_states=1 + max(slot.index for slot in plan.slots))
        self.dtype, self.device = plan.slots[0].dtype, state[0].device
        for slot, tensor in zip(plan.slots, state, strict=True):
            getattr(self, slot.kind)[slot.index] = tensor.to(slot.dtype, copy=True)[None]
            getattr(self, f"is_{slot.kind}_initialized")[slot.index] = True
            if slot.kind == "conv_states":
                self.conv_kernel_size[slot.index] = tensor.shape[-1]
        self.has_previous_state = dict.fromkeys(range(self.number_of_states), length > 0)


class _HybridLayer(_StateLayer, _CellsLayer):
    def __init__(self, cells: Cells, plan: LayerPlan, state: LayerState, length: int) -> None:
        _CellsLayer.__init__(self, cells, plan, length)
        _StateLayer.__init__(self, plan, state, length)
