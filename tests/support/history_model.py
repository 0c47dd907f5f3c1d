"""A model without weights whose next token depends on every token before it, read back from the memory.

A cell that is lost, stale, shared or in the wrong place changes what it says. ``expected_tokens`` says
the same from the tokens alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_models import N_VOCAB, tiny_tokenizer

from elastikv.batch import UBatch
from elastikv.engine.events import EventLog
from elastikv.engine.options import SchedulerOptions
from elastikv.engine.params import SamplingParams
from elastikv.engine.requests import Request
from elastikv.engine.scheduler import Scheduler
from elastikv.engine.sessions import FIRST_SEQ_ID
from elastikv.engine.sharing import SharedBudget
from elastikv.memory import KVLayer, MemoryCost, MemoryOptions, RecurrentLayer, make_memory
from elastikv.memory.hybrid import halves
from elastikv.models.base import ModelInfo
from elastikv.runtimes.torch_runtime import TorchRuntime
from elastikv.runtimes.workspace import Workspace
from elastikv.weights.tokenizer import Tokenizer

_MODULUS = 8191
# Wide enough that a page holds 16 cells, so that small tests see many resizes.
_LAYER = KVLayer(n_kv_heads=1, head_dim=64, head_dim_v=64)
BYTES_PER_CELL = 2 * 64 * 4


def _token_after(attended: int, folded: int) -> int:
    return (attended * 7 + folded) % N_VOCAB


def expected_tokens(prompt: Sequence[int], n: int) -> list[int]:
    """The greedy continuation of ``prompt`` by ``n`` tokens."""
    tokens = list(prompt)
    attended = folded = 0
    for position in itertools.count():
        attended = (attended + (position + 1) * (tokens[position] + 1)) % _MODULUS
        folded = (folded * 31 + tokens[position]) % _MODULUS
        if position + 1 == len(tokens):
            if len(tokens) == len(prompt) + n:
                break
            tokens.append(_token_after(attended, folded))
    return tokens[len(prompt) :]


def greedy(n: int | None, **params: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=n, **params)


def prompt(seed: int, n: int) -> list[int]:
    return [(seed * 37 + i * 11) % N_VOCAB for i in range(n)]


def assert_right(*requests: Request) -> None:
    """What each has said so far is what it would say alone."""
    for request in requests:
        output = request.output(0.0)
        assert output.token_ids == expected_tokens(request.token_ids[: request.n_prompt], len(output.token_ids))


class HistoryModel:
    """``is_hybrid``: a part of what it knows is in a recurrent state; otherwise both are in cells."""

    rotate_k = None

    def __init__(self, *, is_hybrid: bool = False, fingerprint: str = "history") -> None:
        self.is_hybrid = is_hybrid
        self.info = ModelInfo("history", "history", 1, N_VOCAB, 1 << 16, (), 0, fingerprint)
        self.memory_layers = (_LAYER, RecurrentLayer(((1,),))) if is_hybrid else (_LAYER,)
        self.device = torch.device("cpu")
        self.before_forward: Callable[[UBatch], None] = lambda ubatch: None
        self.n_computed = 0
        self.largest_ubatch = 0

    def buffer_bytes(self, n_ubatch: int) -> dict[str, int]:
        return {"tokens": 4 * n_ubatch}

    def scratch_bytes(self, n_ubatch: int, max_capacity: int) -> int:
        return max_capacity

    def forward(self, ubatch: UBatch, memory, buffers) -> torch.Tensor:
        self.before_forward(ubatch)
        self.n_computed += ubatch.n_tokens
        self.largest_ubatch = max(self.largest_ubatch, ubatch.n_tokens)
        buffers.view("tokens", (ubatch.n_tokens,)).copy_(torch.from_numpy(ubatch.token_ids))
        logits = np.zeros((ubatch.n_tokens, N_VOCAB), dtype=np.float32)
        for span in ubatch.spans:
            following = self._follow(span, ubatch.token_ids[span.start : span.stop], memory)
            logits[np.arange(span.start, span.stop), following] = 10.0
        return torch.from_numpy(logits[ubatch.output_rows])

    def _follow(self, span, token_ids: np.ndarray, memory) -> list[int]:
        cells = halves(memory).attention.cells(0, span.seq_id)
        rows = slice(span.pos - cells.first, span.end - cells.first)
        k = cells.k.planes[0]
        k[rows, 0, 0] = torch.from_numpy(token_ids).float()
        history = k[: span.end - cells.first, 0, 0].numpy().astype(np.int64)
        products = np.cumsum((np.arange(len(history)) + 1 + cells.first) * (history + 1)) % _MODULUS
        folded = self._fold(span, token_ids, history, memory)
        return [
            _token_after(int(products[pos - cells.first]), folded[pos - span.pos]) for pos in range(span.pos, span.end)
        ]

    def _fold(self, span, token_ids: np.ndarray, history: np.ndarray, memory) -> list[int]:
        if self.is_hybrid:
            state = int(memory.recurrent.source(0, span.seq_id)[0][0])
        else:
            state = 0
            for token_id in history[: len(history) - len(token_ids)]:
                state = (state * 31 + int(token_id)) % _MODULUS
        folded = []
        for token_id in token_ids:
            state = (state * 31 + int(token_id)) % _MODULUS
            folded.append(state)
        if self.is_hybrid:
            memory.recurrent.target(0, span.seq_id)[0][0] = state
        return folded


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Rig:
    """A scheduler over a HistoryModel and real memory."""

    def __init__(
        self,
        *,
        is_hybrid: bool = False,
        budget: str | int | SharedBudget = "none",
        n_ctx: int = 512,
        n_batch: int = 64,
        n_ubatch: int = 16,
        storage: str = "mmap",
        growth: str | None = "exact",
        fingerprint: str = "history",
        park_dir: Path | None = None,
        **options: object,
    ) -> None:
        self.model = HistoryModel(is_hybrid=is_hybrid, fingerprint=fingerprint)
        self.clock = Clock()
        self.events = EventLog(self.clock)
        self.shared = budget if isinstance(budget, SharedBudget) else SharedBudget(budget)
        self.budget = self.shared.budget
        memory_options = MemoryOptions(
            n_ctx,
            initial=16,
            growth=growth,
            storage=storage,
            k_type="f32",
            v_type="f32",
            on_resize=lambda event: self.events.add("resize", event.seq_id - FIRST_SEQ_ID, n_cells=event.new_cells),
        )
        self.memory = make_memory(self.model.memory_layers, memory_options, self.budget)
        self.workspace = Workspace(self.model, self.budget, n_ubatch)
        self.engine = TorchRuntime(
            self.model,
            self.memory,
            self.workspace,
            n_ubatch,
            tokenizer=Tokenizer(tiny_tokenizer().backend_tokenizer),
            cost=MemoryCost(self.model.memory_layers, memory_options),
        )
        self.scheduler = Scheduler(
            self.engine,
            self.shared,
            SchedulerOptions(park_dir=park_dir, **options),
            self.events,
            n_batch=n_batch,
            clock=self.clock,
        )

    def run(self, *requests, n_steps: int = 100_000) -> None:
        """Step until all requests have finished, with the memory checked after each step."""
        for _ in range(n_steps):
            if all(request.finished for request in requests):
                assert self.budget.kv_bytes == self.memory.stats().committed_bytes, "or else the budget is shared"
                return
            self.scheduler.step()
            self.memory.check()
        raise AssertionError("requests did not finish")

    def kinds(self) -> list[str]:
        """Kinds of the events so far, resizes left out."""
        return [event.kind for event in self.events.since(0) if event.kind != "resize"]

    def close(self) -> None:
        self.scheduler.close()
        self.memory.close()
        self.workspace.close()
        self.shared.leave(self.scheduler)


@pytest.fixture
def rig() -> Iterator[Callable[..., Rig]]:
    """Makes rigs and closes them, which checks that all memory was given back."""
    made: list[Rig] = []

    def make(**keywords: object) -> Rig:
        made.append(Rig(**keywords))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.close()
    assert all(each.budget.committed_bytes == 0 for each in made)
