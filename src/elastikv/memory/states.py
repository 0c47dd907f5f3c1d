"""Buffers for recurrent state: all layers of one sequence in one block, which the budget counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from elastikv.errors import CacheFull
from elastikv.memory.base import RecurrentLayer
from elastikv.memory.budget import Budget
from elastikv.memory.growth import round_up
from elastikv.memory.storage.blocks import Block, allocate_block, committed_size

_ALIGNMENT = 64

LayerState = tuple[torch.Tensor, ...]


def state_bytes(layers: Sequence[RecurrentLayer]) -> int:
    """Bytes of the states of one sequence, before rounding to pages."""
    return sum(round_up(4 * math.prod(shape), _ALIGNMENT) for layer in layers for shape in layer.shapes)


class StateBuffer:
    """The states of all layers of one sequence: float32 tensors over one block."""

    def __init__(self, layers: Sequence[RecurrentLayer], block: Block) -> None:
        self.block = block
        self.layers: list[LayerState] = []
        offset = 0
        for layer in layers:
            tensors = []
            for shape in layer.shapes:
                n_bytes = 4 * math.prod(shape)
                tensors.append(block.data[offset : offset + n_bytes].view(torch.float32).view(shape))
                offset += round_up(n_bytes, _ALIGNMENT)
            self.layers.append(tuple(tensors))

    @property
    def committed_bytes(self) -> int:
        """Bytes backed by memory now."""
        return self.block.committed

    def tensors(self) -> dict[str, torch.Tensor]:
        """All states, by layer and index."""
        return {
            f"recurrent.{layer}.{index}": tensor
            for layer, states in enumerate(self.layers)
            for index, tensor in enumerate(states)
        }

    def copy_from(self, other: StateBuffer) -> None:
        """Overwrite all states with those of another buffer."""
        self.block.data.copy_(other.block.data)

    def zero(self) -> None:
        """Set all states to what they are before the first token."""
        self.block.data.zero_()


class StatePool:
    """Hands out buffers; those that came back as spare are used again before new ones are made."""

    def __init__(self, layers: Sequence[RecurrentLayer], device: str, budget: Budget) -> None:
        self._layers = tuple(layers)
        self._device = torch.device(device)
        self._budget = budget
        self._pool = device
        self._n_bytes = state_bytes(layers)
        self.buffer_bytes = committed_size(self._n_bytes, self._device)
        self.spare: list[StateBuffer] = []
        self.generation = 0

    def take(self, *, zeroed: bool = False) -> StateBuffer:
        """A spare buffer, or a new one; it holds anything unless ``zeroed``. Raises CacheFull."""
        if self.spare:
            buffer = self.spare.pop()
            if zeroed:
                buffer.zero()
            return buffer
        self._budget.require(self.buffer_bytes, self._pool)
        try:
            buffer = StateBuffer(self._layers, allocate_block(self._n_bytes, self._device))
        except MemoryError as error:
            left = self._budget.left(self._pool)
            raise CacheFull("machine", asked=self.buffer_bytes, left=left, limit=None) from error
        self._budget.watch(buffer, pool=self._pool)
        self.generation += 1
        return buffer

    def put_aside(self, buffer: StateBuffer) -> None:
        """Keep a buffer that is not used any more, for the next ``take``."""
        self.spare.append(buffer)

    def free(self, buffer: StateBuffer) -> None:
        """Give the memory back now."""
        self.generation += 1
        buffer.block.close()

    def free_spare(self) -> int:
        """Give the memory of spare buffers back; returns the bytes."""
        n_bytes = len(self.spare) * self.buffer_bytes
        while self.spare:
            self.free(self.spare.pop())
        return n_bytes
