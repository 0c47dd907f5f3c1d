"""One ``decode`` call: all of a batch, or none of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from elastikv.batch import Batch, UBatch
from elastikv.memory import MemoryCost, make_memory
from elastikv.memory.base import Memory
from elastikv.models.base import Model, Output
from elastikv.runtimes.base import RuntimeOptions
from elastikv.runtimes.workspace import Workspace
from elastikv.weights.tokenizer import Tokenizer


class TorchRuntime:
    """A ``Runtime``: a model that torch computes, the memory it fills and the buffers it computes in.

    use_threads: lets the calling thread compute on so many cores.
    """

    def __init__(
        self,
        model: Model,
        memory: Memory,
        workspace: Workspace,
        n_ubatch: int,
        *,
        tokenizer: Tokenizer,
        cost: MemoryCost,
        use_threads: Callable[[int], None] = torch.set_num_threads,
    ) -> None:
        self.model = model
        self.memory = memory
        self.tokenizer = tokenizer
        self.cost = cost
        self.n_ubatch = n_ubatch
        self._workspace = workspace
        self._use_threads = use_threads
        self._reserved_for: int | None = None

    def decode(self, batch: Batch, output: Output = "logits") -> torch.Tensor:
        """Append the batch's tokens and compute them; see ``Runtime.decode``."""
        try:
            ubatches = self.memory.init_batch(batch, self.n_ubatch)
            self._reserve_workspace()
            rows = self._forward(ubatches, output)
            self.memory.commit()
        except BaseException:
            self.memory.rollback()
            raise
        return rows

    def warm_up(self) -> None:
        """Nothing is compiled in the background."""

    def set_threads(self, n_threads: int) -> None:
        """Let the calling thread compute on so many cores from now on."""
        self._use_threads(n_threads)

    def close(self) -> None:
        """Give all cells, states and buffers back."""
        self.memory.close()
        self._workspace.close()

    def _reserve_workspace(self) -> None:
        """Compute buffers follow the capacity within the call that changed it."""
        if self._reserved_for != self.memory.generation:
            self._workspace.reserve(self.memory.max_capacity)
            self._reserved_for = self.memory.generation

    def _forward(self, ubatches: Sequence[UBatch], output: Output) -> torch.Tensor:
        """Compute ubatch by ubatch; the rows are copied, because the next ubatch reuses the buffers."""
        n_outputs, n_done = sum(len(ubatch.output_rows) for ubatch in ubatches), 0
        outputs = torch.empty(n_outputs, 0)
        for ubatch in ubatches:
            rows = self._compute(ubatch, output)
            if not n_done:
                outputs = torch.empty(n_outputs, rows.shape[1])
            outputs[n_done : n_done + len(rows)] = rows
            n_done += len(rows)
        return outputs

    def _compute(self, ubatch: UBatch, output: Output) -> torch.Tensor:
        """The rows of one ubatch; what is remembered between two is in memory alone."""
        self.memory.apply(ubatch)
        forward = self.model.hidden if output == "hidden" else self.model.forward
        return forward(ubatch, self.memory, self._workspace)


_Runtime = TypeVar("_Runtime", bound=TorchRuntime)


def open_runtime(
    model: Model,
    tokenizer: Tokenizer,
    options: RuntimeOptions,
    use_threads: Callable[[int], None],
    make: Callable[..., _Runtime] = TorchRuntime,  # type: ignore[assignment]
) -> _Runtime:
    """Open the memory that a model declares, and its buffers; make: of which class the runtime is to be.

    CacheFull if not even these fit.
    """
    memory = replace(options.memory, rotate=model.rotate_k, device=str(model.device))
    workspace = Workspace(model, options.budget, options.n_ubatch)
    # Growth policies give way to what is left; so the buffers come first, and cells get the rest.
    options.make_room_for(lambda: workspace.reserve(min(memory.initial, memory.n_ctx)))
    return make(
        model,
        make_memory(model.memory_layers, memory, options.budget),
        workspace,
        options.n_ubatch,
        tokenizer=tokenizer,
        cost=MemoryCost(model.memory_layers, memory),
        use_threads=use_threads,
    )
