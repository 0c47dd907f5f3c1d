"""The layer of ``ElasticCache`` that remembers what a sliding window can still reach."""

from __future__ import annotations

from typing import Any

import torch
from typing_extensions import override

from elastikv.errors import InvalidRequest
from elastikv.integrations.cache_layers import ElasticLayer, n_to_remove
from elastikv.integrations.cache_memory import CacheMemory


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
    @override
    def n_used(self) -> int:
        return self.length - self._base

    @property
    def _ceiling(self) -> int:
        """Rows that are enough for ever: moving the window costs 8 cells per token, slack an eighth of it."""
        return self.sliding_window - 1 + max(16, self.sliding_window // 8)

    def _first_row(self) -> int:
        return max(self.length - self.sliding_window + 1 - self._base, 0)

    def _first_needed(self) -> int:
        """With past recording, ``crop`` may go back to where the last one left off."""
        earliest_end = self._mark if self.record_past else self.length
        return max(earliest_end - self.sliding_window + 1, self._base)

    def activate_past_recording(self) -> None:
        """Keep what a ``crop`` needs to go back behind tokens that are appended from now on."""
        if not self.record_past:
            self._mark = self.length
        self.record_past = True

    @override
    def rows_needed(self, n_new: int) -> int:
        if self.n_used + n_new <= self._ceiling:
            return self.n_used + n_new
        n_kept = self.length - self._first_needed()
        if self.record_past or n_kept + n_new <= self._ceiling:
            return n_kept + n_new
        return min(self.length + n_new, self.sliding_window - 1)

    @override
    def row_limit(self, n_needed: int) -> int:
        return max(n_needed, min(self._ceiling, self.memory.n_ctx))

    def _append(self, key_states: torch.Tensor, value_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.cells is not None
        n_new = key_states.shape[-2]
        first_visible = self._base + self._first_row()
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

    @override
    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        n_visible = min(self.length, self.sliding_window - 1)
        return n_visible + query_length, self.length - n_visible

    @override
    def get_max_length(self) -> int:
        return self.sliding_window

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens.

        Raises InvalidRequest where that would move the window back behind what was dropped.
        """
        length = max(self.length - n_to_remove(tokens_to_remove), 0)
        if max(length - self.sliding_window + 1, 0) < self._base and length < self.length:
            raise InvalidRequest(
                "the sliding window has moved on and its old cells are gone; "
                "call activate_past_recording() before the tokens that crop() is to remove"
            )
        self.length = self._mark = length

    @override
    def copy_from(self, other: ElasticLayer) -> None:
        super().copy_from(other)
        assert isinstance(other, ElasticSlidingLayer)
        self._base, self._mark, self.record_past = other._base, other._mark, other.record_past

    @override
    def restore(self, facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        super().restore(facts, tensors)
        if self.cells is not None:
            self._base = self.length - tensors["plane0"].shape[2]
            self._mark = self.length

    @override
    def reset(self) -> None:
        super().reset()
        self._base = self._mark = 0
        self.record_past = False
