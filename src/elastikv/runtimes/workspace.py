"""Compute buffers: named, counted in the budget, and kept from one resize to the next."""

from __future__ import annotations

import math
import mmap

import torch

from elastikv.errors import CacheFull
from elastikv.memory import Budget
from elastikv.models.base import Model

_MAX_VIEWS = 4096


class Workspace:
    """The buffers that a model's forward views by name (``kernels.base.Buffers``).

    On a processor they are private anonymous mappings: a page costs memory once it is touched, and all of it is
    given back at once. What the model allocates for itself counts too, though it is not allocated here.
    """

    def __init__(self, model: Model, budget: Budget, n_ubatch: int) -> None:
        self._model = model
        self._budget = budget
        self._n_ubatch = n_ubatch
        self._buffers: dict[str, torch.Tensor] = {}
        self._views: dict[tuple[str, tuple[int, ...], torch.dtype], torch.Tensor] = {}
        self._scratch_bytes = 0
        self._pool = str(model.device)
        budget.watch(self, "compute", self._pool)

    @property
    def committed_bytes(self) -> int:
        """Bytes of all buffers, and of the model's own scratch."""
        return sum(buffer.numel() for buffer in self._buffers.values()) + self._scratch_bytes

    def reserve(self, max_capacity: int) -> None:
        """Have room for ubatches over streams of up to ``max_capacity`` cells, or CacheFull and no change."""
        sizes = self._model.buffer_bytes(self._n_ubatch)
        scratch = self._model.scratch_bytes(self._n_ubatch, max_capacity)
        self._budget.require(sum(sizes.values()) + scratch - self.committed_bytes, self._pool)
        self._allocate(sizes)
        self._scratch_bytes = scratch

    def view(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """An uninitialised tensor over the buffer ``name``; valid until the same name is viewed again."""
        # Step after step asks for the same views, and making one costs more than many a kernel.
        view = self._views.get((name, shape, dtype))
        if view is None:
            if len(self._views) >= _MAX_VIEWS:
                self._views.clear()
            n_bytes = math.prod(shape) * dtype.itemsize
            view = self._views[name, shape, dtype] = self._buffers[name][:n_bytes].view(dtype).view(shape)
        return view

    def close(self) -> None:
        """Give everything back; the workspace may be reserved again."""
        self._views.clear()
        self._buffers = {}
        self._scratch_bytes = 0

    def _allocate(self, sizes: dict[str, int]) -> None:
        kept = {name: buffer for name, buffer in self._buffers.items() if sizes.get(name) == buffer.numel()}
        new = {name: _new_buffer(n_bytes, self._model.device) for name, n_bytes in sizes.items() if name not in kept}
        self._views.clear()
        self._buffers = kept | new


def _new_buffer(n_bytes: int, device: torch.device) -> torch.Tensor:
    """uint8 ``[n_bytes]``; on a processor page-aligned, and the tensor owns the mapping."""
    if device.type != "cpu":
        return torch.empty(n_bytes, dtype=torch.uint8, device=device)
    try:
        mapping = mmap.mmap(-1, max(n_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise CacheFull("machine", asked=n_bytes, left=0, limit=None) from error
    return torch.frombuffer(mapping, dtype=torch.uint8)[:n_bytes]
