"""What the kernels need to know of a ubatch: which spans are attended like decoded tokens, and which as a prefill."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from elastikv.batch import Span, UBatch
from elastikv.memory.recurrent import RecurrentMemory

_SHORT_SPAN = 8
"""Tokens of a span up to which each is attended like a decoded one."""

_SHORT_DRAFT = 64
"""The same where the logits of every token are wanted, as of a draft: they should be those of decoding, bit for bit."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Tokens that attend one by one: rows of the ubatch, their sequences, and int64 positions behind the last seen."""

    rows: slice
    seq_ids: tuple[int, ...]
    ends: np.ndarray


class UBatchPlan:
    """What the kernels derive from a ubatch, once for all layers.

    seq_ids: of its spans; span_of: int64 ``[n_tokens]``, each token's span; row_numbers: 0, 1, ... n_tokens - 1.
    short_runs: neighbouring short spans, as single tokens; long_spans: the others, for prefill attention.
    rows: the whole ubatch as single tokens, None if a span is long.
    """

    def __init__(self, ubatch: UBatch) -> None:
        self.ubatch = ubatch
        self.seq_ids = tuple(span.seq_id for span in ubatch.spans)
        lengths = [span.n_tokens for span in ubatch.spans]
        self.span_of = np.repeat(np.arange(len(lengths)), lengths)
        self.long_spans = [span for span in ubatch.spans if not _is_short(span, ubatch)]
        self.short_runs = list(_short_runs(ubatch))
        self.rows = None if self.long_spans else self.short_runs[0]
        self.row_numbers = np.arange(ubatch.n_tokens)


class Planner:
    """Keeps the last ubatch's plan: layer after layer asks for it."""

    def __init__(self) -> None:
        self._plan: UBatchPlan | None = None

    def __call__(self, ubatch: UBatch) -> UBatchPlan:
        """Plan a ubatch, or return the plan of the call before if the ubatch is the same object."""
        if self._plan is None or self._plan.ubatch is not ubatch:
            self._plan = UBatchPlan(ubatch)
        return self._plan


def _is_short(span: Span, ubatch: UBatch) -> bool:
    if span.n_tokens <= _SHORT_SPAN:
        return True
    first, behind = np.searchsorted(ubatch.output_rows, (span.start, span.stop))
    return bool(behind - first == span.n_tokens <= _SHORT_DRAFT)


def _short_runs(ubatch: UBatch) -> list[Rows]:
    runs: list[list[Span]] = [[]]
    for span in ubatch.spans:
        if _is_short(span, ubatch):
            runs[-1].append(span)
        elif runs[-1]:
            runs.append([])
    return [_as_rows(spans, ubatch) for spans in runs if spans]


def _as_rows(spans: list[Span], ubatch: UBatch) -> Rows:
    rows = slice(spans[0].start, spans[-1].stop)
    seq_ids = tuple(span.seq_id for span in spans for _ in range(span.n_tokens))
    return Rows(rows, seq_ids, ubatch.positions[rows] + 1)


def state_table(memory: RecurrentMemory, layer: int, ubatch: UBatch, index: int) -> np.ndarray:
    """Lines (address to read, address to write, first row, end row), as ``recurrent`` takes them."""
    lines = [
        (
            memory.source(layer, span.seq_id)[index].data_ptr(),
            memory.target(layer, span.seq_id)[index].data_ptr(),
            span.start,
            span.stop,
        )
        for span in ubatch.spans
    ]
    return np.array(lines, dtype=np.int64)
