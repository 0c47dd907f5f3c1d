"""The contract between memory and everything above it.

A model declares what a token costs (``KVLayer``) and what a sequence costs (``RecurrentLayer``);
``make_memory`` builds the memory that holds it; a runtime drives it through ``Memory``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from elastikv.batch import Batch, UBatch
from elastikv.memory.formats import CellFormat, CellTensor
from elastikv.memory.storage.planes import LayerPlanes

CellType = str
"""The name of a cell format: a key of ``memory.formats.FORMATS``."""


@dataclass(frozen=True, slots=True)
class KVLayer:
    """One attention layer: K is ``[cells, n_kv_heads, head_dim]``, V ``[cells, n_kv_heads, head_dim_v]``.

    ``window``: a token sees itself and the ``window - 1`` positions before it; ``None``: all.
    """

    n_kv_heads: int
    head_dim: int
    head_dim_v: int
    window: int | None = None

    def planes(self, k_format: CellFormat, v_format: CellFormat) -> LayerPlanes:
        """The tensors of a stream's layer, in the order in which they are stored and saved: values, then scales."""
        k = k_format.planes("k", self.n_kv_heads, self.head_dim)
        v = v_format.planes("v", self.n_kv_heads, self.head_dim_v)
        return (k[0], v[0], *k[1:], *v[1:])

    def n_bytes(self, k_format: CellFormat, v_format: CellFormat) -> int:
        """Bytes of one cell."""
        return k_format.n_bytes(self.n_kv_heads, self.head_dim) + v_format.n_bytes(self.n_kv_heads, self.head_dim_v)


@dataclass(frozen=True, slots=True)
class RecurrentLayer:
    """One layer with state of fixed size per sequence; float32, zero before the first token.

    ``shapes``: of the state tensors, e.g. ``((conv_dim, conv_kernel - 1), (n_heads, dk, dv))``.
    """

    shapes: tuple[tuple[int, ...], ...]


LayerMemory = KVLayer | RecurrentLayer


@dataclass(frozen=True, slots=True)
class Cells:
    """One layer of one stream, whole capacity. Row ``r`` holds position ``first + r``.

    k: ``[capacity, n_kv_heads, head_dim]``; v: ``[capacity, n_kv_heads, head_dim_v]``, each in its cell format.
    Rows at and beyond the used ones hold anything, NaN included.
    """

    k: CellTensor
    v: CellTensor
    first: int


@dataclass(frozen=True, slots=True)
class SequenceStats:
    """What one sequence holds. Bytes are committed bytes of its stream and state."""

    seq_id: int
    used_cells: int
    capacity_cells: int
    committed_bytes: int
    reserved_bytes: int


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """What the whole memory holds. ``peak_committed_bytes`` includes transients of resizes."""

    capacity_cells: int
    used_cells: int
    committed_bytes: int
    reserved_bytes: int
    peak_committed_bytes: int
    compute_bytes: int
    budget_bytes: int | None
    n_resizes: int
    resize_seconds: float
    sequences: tuple[SequenceStats, ...]


@dataclass(frozen=True, slots=True)
class SavedSequence:
    """What is known of a saved sequence before its tensors are read. first: the position of its first token."""

    n_tokens: int
    first: int
    shapes: Mapping[str, tuple[int, ...]]


class Memory(Protocol):
    """State of all sequences of one model.

    Positions are token positions; ranges are half-open ``[p0, p1)``, ``p1 = -1`` means to the end.
    An operation that returns False, or raises, has changed nothing.

    One decode call is a transaction::

        ubatches = memory.init_batch(batch, n_ubatch)   # all cells, or CacheFull and nothing changed
        for ubatch in ubatches:
            memory.apply(ubatch)                        # its cells count as used; forward fills them
        memory.commit()                                 # or memory.rollback(): as before init_batch

    Any operation may be interrupted (Ctrl-C) at any line: ``rollback()`` then makes it done or undone, and no
    sequence ever holds what it should not. A sequence from whose middle tokens were being removed, or that was being
    shifted or replaced, may be shorter, or gone.
    """

    n_ctx: int

    @property
    def generation(self) -> int:
        """A count that grows whenever a capacity or an address of cells or states may have changed.

        Tensors, ``Cells`` and addresses that were handed out are valid as long as it stays the same.
        """
        ...

    @property
    def max_capacity(self) -> int:
        """Largest capacity in cells of any stream: what compute buffers are sized for."""
        ...

    def init_batch(self, batch: Batch, n_ubatch: int) -> list[UBatch]:
        """Open a decode call: split the batch into ubatches of at most ``n_ubatch`` tokens, and grow to hold them all.

        Sequences that hold nothing yet begin at position 0. Raises CacheFull if not every token gets its cell, and
        RuntimeError while another call is open.
        """
        ...

    def apply(self, ubatch: UBatch) -> None:
        """Count the next ubatch's cells as used, before its forward pass; ubatches in the order of ``init_batch``.

        Raises RuntimeError if no call is open.
        """
        ...

    def commit(self) -> None:
        """Close the call, if one is open: its tokens stay, and cells that all windows have left are given back."""
        ...

    def rollback(self) -> None:
        """Close the call, if one is open: sequences and capacities are as before ``init_batch``.

        May be interrupted and called again.
        """
        ...

    def seq_rm(self, seq_id: int, p0: int = 0, p1: int = -1) -> bool:
        """Remove the tokens at positions ``[p0, p1)``; True if they are gone, also if none was held.

        At the end the sequence is truncated. At the front the rest keep their positions. In the middle the rest move
        down to close the gap and K is rotated to their new positions (a context shift in one call). Removing all of a
        sequence always works and gives its memory back; a part may be refused, with False: where state cannot go back
        (see ``cuts_anywhere``) or cells that would be needed were given back behind a window. Raises RuntimeError
        inside a decode call.
        """
        ...

    def seq_cp(self, src: int, dst: int, p0: int = 0, p1: int = -1) -> bool:
        """Replace sequence ``dst`` by a copy of positions ``[p0, p1)`` of ``src``, at the same positions.

        An empty range empties ``dst``. False where ``src`` could not be continued at ``p1``, or, with recurrent state,
        where none was kept for it. Raises CacheFull if there is no room, RuntimeError inside a decode call.
        """
        ...

    def seq_keep(self, seq_id: int) -> None:
        """Remove all other sequences and give their memory back. Raises RuntimeError inside a decode call."""
        ...

    def seq_add(self, seq_id: int, p0: int, p1: int, delta: int) -> bool:
        """Shift positions ``[p0, p1)`` by ``delta``; K is rotated to its new positions.

        Positions of a sequence have no gaps, so only a whole one can be shifted, and none below 0: otherwise False, as
        with recurrent state or K that was given back behind a window. Raises RuntimeError inside a decode call.
        """
        ...

    def seq_pos_min(self, seq_id: int) -> int:
        """Smallest position held, -1 if the sequence is empty."""
        ...

    def seq_pos_max(self, seq_id: int) -> int:
        """Largest position held, -1 if the sequence is empty."""
        ...

    def n_tokens(self, seq_id: int) -> int:
        """Tokens of the sequence that need not be computed again: those before its end; 0 if it is empty."""
        return self.seq_pos_max(seq_id) + 1

    @property
    def cuts_anywhere(self) -> bool:
        """Whether ``seq_rm(seq_id, p0)`` can truncate at any token; if not, only where a checkpoint was made."""
        ...

    @property
    def undoes_calls(self) -> bool:
        """Whether ``seq_rm`` can take back a sequence's last decode call, if that wanted logits of several tokens."""
        ...

    def seq_ids(self) -> Sequence[int]:
        """Sequences that hold anything, ascending."""
        ...

    def checkpoint(self, seq_id: int) -> bool:
        """Keep what is needed to truncate the sequence to its present end later, with ``seq_rm(seq_id, p_end)``.

        Free (and always True) for attention memory; recurrent memory copies its state, charged to the budget, and
        returns False where there is no room. Not for use inside a decode call.
        """
        ...

    def truncation_point(self, seq_id: int, p_max: int) -> int:
        """The largest ``p0 <= p_max`` for which ``seq_rm(seq_id, p0)`` would return True; 0: only as a whole."""
        ...

    @property
    def layout(self) -> Mapping[str, Any]:
        """What saved sequences depend on, in JSON's types: memories of one layout can load each other's."""
        ...

    def seq_tensors(self, seq_id: int) -> dict[str, torch.Tensor]:
        """The tensors that hold a sequence, by name, in the order of a file. Valid until the next operation."""
        ...

    def seq_load(self, seq_id: int, saved: SavedSequence, fill: Callable[[dict[str, torch.Tensor]], None]) -> None:
        """Replace a sequence by a saved one: ``fill`` gets tensors like those of ``seq_tensors``, and writes them.

        Raises CacheFull, ValueError if this memory has no such sequences, and whatever ``fill`` raises: nothing has
        changed then. RuntimeError inside a decode call.
        """
        ...

    def clear(self) -> None:
        """Remove all sequences and give their memory back; also ends an open call."""
        ...

    def resize(self, n_cells: int, seq_id: int | None = None) -> None:
        """Set the capacity of one sequence's stream, or of every open stream, to ``n_cells`` cells: all or none.

        seq_id: the sequence, which gets a stream if it has none; None: all that have one. Cells in use keep their
        contents; bytes beyond ``n_cells`` go back to the system. The capacity is no limit: a later decode call grows it
        as it needs. Recurrent state has one size and is not touched.

        Raises InvalidRequest if ``n_cells`` is below what is used or not in ``1 .. n_ctx``, CacheFull if the budget or
        the machine has no room, RuntimeError inside a decode call. Nothing has changed then.
        """
        ...

    def shrink_to_fit(self, seq_id: int | None = None) -> int:
        """Give back capacity that is not in use, of one sequence or (None) of all, and spare state buffers.

        Returns the bytes given back. Raises RuntimeError inside a decode call.
        """
        ...

    def stats(self) -> MemoryStats:
        """Cells and bytes held now, in sum and per sequence."""
        ...

    def check(self) -> None:
        """Raise AssertionError if an invariant does not hold. Tests call it after each operation."""
        ...

    def close(self) -> None:
        """Give all memory back. The object is not usable after that."""
        self.clear()
