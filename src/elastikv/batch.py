"""What one ``decode`` call computes, and its pieces.

    Batch    seq 0: [a b c d e f]   seq 1: [x]   seq 2: [p q r]      n_ubatch = 4
    UBatch 0  [a b c d]             spans: 0 @ rows 0..4
    UBatch 1  [e f x p]             spans: 0 @ rows 0..2, 1 @ rows 2..3, 2 @ rows 3..4
    UBatch 2  [q r]                 spans: 2 @ rows 0..2

Tokens are always appended: a span's positions follow the ones its sequence holds already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from elastikv.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class SeqTokens:
    """Tokens to append to one sequence; logits are wanted for the last ``n_logits`` of them.

    is_draft: whether the last of them are guesses, so that the call may be taken back.
    """

    seq_id: int
    token_ids: Sequence[int]
    n_logits: int = 1
    is_draft: bool = False

    def __post_init__(self) -> None:
        if self.seq_id < 0:
            raise InvalidRequest(f"seq_id must be >= 0, got {self.seq_id}")
        if not len(self.token_ids):
            raise InvalidRequest(f"sequence {self.seq_id} was given no tokens")
        if not 0 <= self.n_logits <= len(self.token_ids):
            raise InvalidRequest(f"n_logits must be in 0..{len(self.token_ids)}, got {self.n_logits}")


@dataclass(frozen=True, slots=True)
class Batch:
    """Tokens of several sequences, each at most once. Raises InvalidRequest otherwise, and if there are none."""

    entries: tuple[SeqTokens, ...]

    def __init__(self, entries: Iterable[SeqTokens]) -> None:
        object.__setattr__(self, "entries", tuple(entries))
        if not self.entries:
            raise InvalidRequest("a batch needs at least one sequence")
        if len({entry.seq_id for entry in self.entries}) != len(self.entries):
            raise InvalidRequest("a sequence may appear only once in a batch")

    @property
    def n_tokens(self) -> int:
        """Tokens of all entries."""
        return sum(len(entry.token_ids) for entry in self.entries)


@dataclass(frozen=True, slots=True)
class Span:
    """Rows ``[start, stop)`` of a ubatch: consecutive tokens of one sequence, the first at ``pos``."""

    seq_id: int
    start: int
    stop: int
    pos: int

    @property
    def n_tokens(self) -> int:
        """Tokens of the span, which is also its number of rows."""
        return self.stop - self.start

    @property
    def end(self) -> int:
        """Position after the last token: the sequence's length once the span is applied."""
        return self.pos + self.n_tokens


@dataclass(frozen=True, slots=True, eq=False)
class UBatch:
    """A piece of a batch that is computed at once.

    token_ids: int64 ``[n_tokens]``; positions: int64 ``[n_tokens]``;
    output_rows: int64 ``[n_outputs]``, the rows whose logits are wanted, ascending.
    """

    token_ids: np.ndarray
    positions: np.ndarray
    spans: tuple[Span, ...]
    output_rows: np.ndarray

    @property
    def n_tokens(self) -> int:
        """Tokens of all spans: the rows of the ubatch."""
        return len(self.token_ids)


def split(batch: Batch, next_pos: Mapping[int, int], n_ubatch: int) -> list[UBatch]:
    """Split a batch into ubatches of at most ``n_ubatch`` tokens, in order.

    ``next_pos[seq_id]`` is the position that the sequence's next token gets. Because order is kept,
    the logits of all ubatches, one after the other, are in the order of ``batch.entries``. Raises InvalidRequest if
    ``n_ubatch`` is below 1.
    """
    if n_ubatch < 1:
        raise InvalidRequest(f"n_ubatch must be at least 1, got {n_ubatch}")
    ubatches: list[UBatch] = []
    builder = _UBatchBuilder()
    for entry in batch.entries:
        done = 0
        while done < len(entry.token_ids):
            take = min(n_ubatch - builder.n_tokens, len(entry.token_ids) - done)
            builder.add(entry, done, take, next_pos[entry.seq_id] + done)
            done += take
            if builder.n_tokens == n_ubatch:
                ubatches.append(builder.build())
                builder = _UBatchBuilder()
    if builder.n_tokens:
        ubatches.append(builder.build())
    return ubatches


class _UBatchBuilder:
    def __init__(self) -> None:
        self.n_tokens = 0
        self._token_ids: list[int] = []
        self._positions: list[np.ndarray] = []
        self._spans: list[Span] = []
        self._output_rows: list[np.ndarray] = []

    def add(self, entry: SeqTokens, offset: int, n_tokens: int, pos: int) -> None:
        start, stop = self.n_tokens, self.n_tokens + n_tokens
        self._token_ids.extend(entry.token_ids[offset : offset + n_tokens])
        self._positions.append(np.arange(pos, pos + n_tokens, dtype=np.int64))
        self._spans.append(Span(entry.seq_id, start, stop, pos))
        first_output = max(len(entry.token_ids) - entry.n_logits - offset, 0)
        self._output_rows.append(np.arange(start + first_output, stop, dtype=np.int64))
        self.n_tokens = stop

    def build(self) -> UBatch:
        return UBatch(
            token_ids=np.asarray(self._token_ids, dtype=np.int64),
            positions=np.concatenate(self._positions),
            spans=tuple(self._spans),
            output_rows=np.concatenate(self._output_rows),
        )
