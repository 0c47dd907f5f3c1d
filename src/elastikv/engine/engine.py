"""One ``decode`` call: all of a batch, or none of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from elastikv.batch import Batch, UBatch
from elastikv.engine.workspace import Workspace
from elastikv.memory.base import Memory
from elastikv.models.base import Model


class Engine:
    """A model, the memory it fills and the buffers it computes in."""

    def __init__(self, model: Model, memory: Memory, workspace: Workspace, n_ubatch: int) -> None:
        self.model = model
        self.memory = memory
        self._workspace = workspace
        self._n_ubatch = n_ubatch
        self._reserved_for: int | None = None

    def decode(self, batch: Batch) -> torch.Tensor:
        """Append the batch's tokens and compute them; float32 logits ``[n_outputs, n_vocab]``.

        Rows are in the order of ``batch.entries``. Whatever is raised, CacheFull and KeyboardInterrupt
        included, memory holds what it held before; or, if an interrupt came after all was computed, all
        of the batch.
        """
        try:
            ubatches = self.memory.init_batch(batch, self._n_ubatch)
            self._reserve_workspace()
            logits = self._forward(ubatches)
            self.memory.commit()
        except BaseException:
            self.memory.rollback()
            raise
        return logits

    def _reserve_workspace(self) -> None:
        """Compute buffers follow the capacity within the call that changed it."""
        if self._reserved_for != self.memory.generation:
            self._workspace.reserve(self.memory.max_capacity)
            self._reserved_for = self.memory.generation

    def _forward(self, ubatches: Sequence[UBatch]) -> torch.Tensor:
        """Compute ubatch by ubatch; the rows are copied, because the next ubatch reuses the buffers."""
        n_outputs = sum(len(ubatch.output_rows) for ubatch in ubatches)
        logits = torch.empty(n_outputs, self.model.info.n_vocab)
        n_done = 0
        for ubatch in ubatches:
            self.memory.apply(ubatch)
            rows = self.model.forward(ubatch, self.memory, self._workspace)
            logits[n_done : n_done + len(rows)] = rows
            n_done += len(rows)
        return logits
