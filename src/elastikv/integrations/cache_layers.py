"""Layers of ``ElasticCache``, one class for each thing that a model's layer remembers."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin

from elastikv.errors import CacheFull, InvalidRequest
from elastikv.integrations.cache_memory import CacheMemory
from elastikv.integrations.layer_cells import LayerCells


class ElasticLayer(CacheLayerMixin):
    """Full attention: row ``i`` of the cells is position ``i``."""

    is_compileable = False
    is_croppable = True
    is_sliding = False

    def __init__(self, memory: CacheMemory) -> None:
        # The base class's constructor would assign to keys and values, which are views here.
        self.memory = memory
        self.cells: LayerCells | None = None
        self.length = 0
        memory.add_owner(self)

    @property
    def is_initialized(self) -> bool:
        return self.cells is not None

    @property
    def keys(self) -> torch.Tensor | None:
        """``[batch, heads, held, dim]``: a view, good until the next update."""
        return None if self.cells is None else self.cells.rows(0, self.n_used)[0]

    @property
    def values(self) -> torch.Tensor | None:
        return None if self.cells is None else self.cells.rows(0, self.n_used)[1]

    @property
    def n_used(self) -> int:
        return self.length

    def rows_needed(self, n_new: int) -> int:
        return self.length + n_new

    def row_limit(self, n_needed: int) -> int:
        return self.memory.n_ctx

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Learn shapes, types and device; nothing is allocated."""
        if self.cells is not None:
            self.cells.close()
        self.cells = self.memory.open_cells((key_states, value_states))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append ``[batch, heads, n, dim]``; returns all that attention may look at, as views.

        Where gradients are wanted, copies that lead them to the new tokens, never to what was held.
        CacheFull: the cache is as before the forward pass.
        """
        self._admit(key_states, value_states)
        keys, values = self._append(key_states, value_states)
        if key_states.requires_grad or value_states.requires_grad:
            return _end_with(keys, key_states), _end_with(values, value_states)
        return keys, values

    def _admit(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Cells of the right shape with room for these, or an error that leaves the cache as it was."""
        fresh = self.length == 0
        if self.cells is None or (fresh and not self.cells.accepts((key_states, value_states))):
            self.lazy_initialization(key_states, value_states)
        elif not self.cells.accepts((key_states, value_states)):
            raise _mismatch(self.cells, key_states)
        try:
            self.memory.make_room(self, key_states.shape[-2])
        except CacheFull:
            if fresh:
                self.memory.reset()
            raise

    def _append(self, key_states: torch.Tensor, value_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.cells is not None
        self.cells.write(self.length, (key_states, value_states))
        self.length += key_states.shape[-2]
        keys, values = self.cells.rows(0, self.length)
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        """-1, as a growing cache answers; a positive number would make models pad their masks to it."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens. Their memory stays for the next ones."""
        self.length = max(self.length - _count(tokens_to_remove), 0)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        if self.cells is not None:
            self.cells.reorder(beam_idx.cpu(), self.n_used)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.cells is not None:
            self._select_cells(torch.arange(self.cells.batch_size).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self.cells is not None:
            self._select_cells(torch.arange(self.cells.batch_size)[indices.cpu()])

    def _select_cells(self, batch_index: torch.Tensor) -> None:
        assert self.cells is not None
        old = self.cells
        self.cells = old.selected(batch_index, self.n_used)
        old.close()

    def copy_from(self, other: ElasticLayer) -> None:
        """Hold what ``other`` holds, in memory of its own. CacheFull: this layer is empty."""
        if other.cells is not None:
            everything = torch.arange(other.cells.batch_size)
            self.cells = other.cells.selected(everything, other.n_used)
            self.length = other.length

    def snapshot(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """What ``restore`` needs to hold the same again: facts for a header, and views."""
        tensors = () if self.cells is None else self.cells.rows(0, self.n_used)
        return {"length": self.length}, {f"plane{i}": tensor for i, tensor in enumerate(tensors)}

    def restore(self, facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Into an empty layer. CacheFull: it is empty still."""
        planes = [tensors[name] for name in sorted(tensors) if name.startswith("plane")]
        if not planes:
            return
        if facts["length"] > self.memory.n_ctx:
            raise CacheFull("n_ctx", asked=facts["length"], left=self.memory.n_ctx, limit=self.memory.n_ctx)
        cells = self.memory.open_cells(planes)
        self.memory.set_capacities([(cells, planes[0].shape[2], 0)])
        cells.write(0, planes)
        self.cells, self.length = cells, facts["length"]

    def reset(self) -> None:
        """Forget everything and give the memory back."""
        if self.cells is not None:
            self.cells.close()
        self.cells = None
        self.length = 0

    def offload(self) -> None:
        raise InvalidRequest("this cache does not offload; use DynamicCache(offloading=True)")

    prefetch = offload


class ElasticSlidingLayer(ElasticLayer):
    """Sliding window (or chunk): only what the window can still reach is kept.

        base            first_needed         length
        | row 0 ...     | row n ...          |          a token sees the window - 1 before it

    Rows are appended until there are ``window - 1`` and some slack; then those still needed move to the front.
    """

    is_sliding = True

    def __init__(self, memory: CacheMemory, sliding_window: int) -> None:
        super().__init__(memory)
        self.sliding_window = sliding_window
        self.record_past = False
        self._base = 0
        self._mark = 0

    @property
    def n_used(self) -> int:
        return self.length - self._base

    @property
    def _ceiling(self) -> int:
        """Rows that are enough for ever: moving the window costs 8 cells per token, slack an eighth of it."""
        return self.sliding_window - 1 + max(16, self.sliding_window // 8)

    def _first_needed(self) -> int:
        """With past recording, ``crop`` may go back to where the last one left off."""
        earliest_end = self._mark if self.record_past else self.length
        return max(earliest_end - self.sliding_window + 1, self._base)

    def activate_past_recording(self) -> None:
        """Keep what a ``crop`` needs to go back behind tokens that are appended from now on."""
        if not self.record_past:
            self._mark = self.length
        self.record_past = True

    def rows_needed(self, n_new: int) -> int:
        if self.n_used + n_new <= self._ceiling:
            return self.n_used + n_new
        n_kept = self.length - self._first_needed()
        if self.record_past or n_kept + n_new <= self._ceiling:
            return n_kept + n_new
        return min(self.length + n_new, self.sliding_window - 1)

    def row_limit(self, n_needed: int) -> int:
        return max(n_needed, min(self._ceiling, self.memory.n_ctx))

    def _append(self, key_states: torch.Tensor, value_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.cells is not None
        n_new = key_states.shape[-2]
        first_visible = max(self.length - self.sliding_window + 1, self._base)
        if self.n_used + n_new > self.cells.capacity:
            self._drop_before(self._first_needed())
        if self.n_used + n_new > self.cells.capacity:
            return self._replace_all(key_states, value_states, first_visible)
        self.cells.write(self.n_used, (key_states, value_states))
        self.length += n_new
        keys, values = self.cells.rows(first_visible - self._base, self.n_used)
        return keys, values

    def _drop_before(self, position: int) -> None:
        assert self.cells is not None
        if position > self._base:
            self.cells.move_to_front(position - self._base, self.n_used)
            self._base = position

    def _replace_all(
        self, key_states: torch.Tensor, value_states: torch.Tensor, first_visible: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """More new tokens than the cells will ever hold: attention gets a tensor of its own, the cells its end."""
        assert self.cells is not None
        held = self.cells.rows(first_visible - self._base, self.n_used)
        keys, values = (
            torch.cat((old, new), dim=-2) for old, new in zip(held, (key_states, value_states), strict=True)
        )
        self.length += key_states.shape[-2]
        n_kept = min(self.cells.capacity, self.sliding_window - 1, keys.shape[-2])
        self._base = self.length - n_kept
        self.cells.write(0, tuple(full[:, :, full.shape[-2] - n_kept :] for full in (keys, values)))
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        n_visible = min(self.length, self.sliding_window - 1)
        return n_visible + query_length, self.length - n_visible

    def get_max_length(self) -> int:
        return self.sliding_window

    def crop(self, tokens_to_remove: int) -> None:
        """As above; without past recording the window cannot be moved back behind what was dropped."""
        length = max(self.length - _count(tokens_to_remove), 0)
        if max(length - self.sliding_window + 1, 0) < self._base and length < self.length:
            raise InvalidRequest(
                "the sliding window has moved on and its old cells are gone; "
                "call activate_past_recording() before the tokens that crop() is to remove"
            )
        self.length = self._mark = length

    def copy_from(self, other: ElasticLayer) -> None:
        super().copy_from(other)
        assert isinstance(other, ElasticSlidingLayer)
        self._base, self._mark, self.record_past = other._base, other._mark, other.record_past

    def snapshot(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        first = max(self.length - self.sliding_window + 1, self._base) - self._base
        facts, tensors = super().snapshot()
        return facts, {name: tensor[:, :, first:] for name, tensor in tensors.items()}

    def restore(self, facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        super().restore(facts, tensors)
        if self.cells is not None:
            self._base = self.length - tensors["plane0"].shape[2]
            self._mark = self.length

    def reset(self) -> None:
        super().reset()
        self._base = self._mark = 0
        self.record_past = False


def _end_with(stored: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """``stored`` with the very tensor ``new`` in place of its copy at the end."""
    n_before = stored.shape[2] - new.shape[2]
    return torch.cat((stored[:, :, :n_before].detach(), new), dim=2)


def _count(tokens_to_remove: int) -> int:
    if tokens_to_remove > 0:
        raise InvalidRequest(f"crop takes the number of tokens to remove as a negative number, got {tokens_to_remove}")
    return -tokens_to_remove


def _mismatch(cells: LayerCells, key_states: torch.Tensor) -> InvalidRequest:
    if key_states.shape[0] != cells.batch_size:
        return InvalidRequest(
            f"the cache holds a batch of {cells.batch_size} sequences but was given {key_states.shape[0]}; "
            "reset() it, or change it with batch_repeat_interleave() or batch_select_indices()"
        )
    return InvalidRequest(
        f"the cache was filled by another model: it holds keys like {_describe(cells.planes[0])}, "
        f"it was given {_describe(key_states)}; reset() it or make a new one"
    )


def _describe(tensor: torch.Tensor) -> str:
    batch, heads, _, dim = tensor.shape
    return f"[{batch}, {heads}, ..., {dim}] {tensor.dtype} on {tensor.device}"
