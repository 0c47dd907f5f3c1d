"""The layer of ``ElasticCache`` that remembers all keys and values."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin
from typing_extensions import override

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
        """Whether shapes, types and device are known."""
        return self.cells is not None

    @property
    def keys(self) -> torch.Tensor | None:
        """``[batch, heads, held, dim]``: a view, good until the next update."""
        return self._held()[0] if self.cells else None

    @property
    def values(self) -> torch.Tensor | None:
        """``[batch, heads, held, dim_v]``: a view, good until the next update."""
        return self._held()[1] if self.cells else None

    def _held(self) -> tuple[torch.Tensor, ...]:
        """Of each plane, the rows that a later token may look at."""
        return () if self.cells is None else self.cells.rows(self._first_row(), self.n_used)

    def _first_row(self) -> int:
        return 0

    @property
    def n_used(self) -> int:
        """Rows of ``cells`` that hold something: all of them are kept."""
        return self.length

    def rows_needed(self, n_new: int) -> int:
        """Rows that ``cells`` must have to take ``n_new`` more tokens."""
        return self.length + n_new

    def row_limit(self, n_needed: int) -> int:
        """Rows that a growth policy may go up to."""
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
            owners = self.memory.owners if self.memory.leads(self) else (self,)
            self.memory.make_room(key_states.shape[-2], owners)
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

    @override
    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    @override
    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        """-1, as a growing cache answers; a positive number would make models pad their masks to it."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens. Their memory stays for the next ones."""
        self.length = max(self.length - n_to_remove(tokens_to_remove), 0)

    @override
    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        if self.cells is not None:
            self.cells.reorder(beam_idx.cpu(), self.n_used)

    @override
    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.cells is not None:
            self._select_cells(torch.arange(self.cells.batch_size).repeat_interleave(repeats))

    @override
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
        return {"length": self.length}, {f"plane{i}": tensor for i, tensor in enumerate(self._held())}

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
        """Raises InvalidRequest: the memory is where the keys came from."""
        raise InvalidRequest("this cache does not offload; use DynamicCache(offloading=True)")

    prefetch = offload


def _end_with(stored: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """``stored`` with the very tensor ``new`` in place of its copy at the end."""
    n_before = stored.shape[2] - new.shape[2]
    return torch.cat((stored[:, :, :n_before].detach(), new), dim=2)


def n_to_remove(tokens_to_remove: int) -> int:
    """The argument of ``crop``, which transformers passes as a negative number. InvalidRequest if it is not."""
    if tokens_to_remove > 0:
        raise InvalidRequest(f"crop takes the number of tokens to remove as a negative number, got {tokens_to_remove}")
    return -tokens_to_remove


def wrong_batch_size(n_held: int, n_given: int) -> InvalidRequest:
    """The error for a batch that is larger or smaller than what is held."""
    return InvalidRequest(
        f"the cache holds a batch of {n_held} sequences but was given {n_given}; "
        "reset() it, or change it with batch_repeat_interleave() or batch_select_indices()"
    )


def _mismatch(cells: LayerCells, key_states: torch.Tensor) -> InvalidRequest:
    if key_states.shape[0] != cells.batch_size:
        return wrong_batch_size(cells.batch_size, key_states.shape[0])
    return InvalidRequest(
        f"the cache was filled by another model: it holds keys like {_describe(cells.planes[0])}, "
        f"it was given {_describe(key_states)}; reset() it or make a new one"
    )


def _describe(tensor: torch.Tensor) -> str:
    batch, heads, _, dim = tensor.shape
    return f"[{batch}, {heads}, ..., {dim}] {tensor.dtype} on {tensor.device}"
