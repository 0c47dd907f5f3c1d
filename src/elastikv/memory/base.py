"""The contract between memory and everything above it.

A model declares what a token costs (``KVLayer``) and what a sequence costs (``RecurrentLayer``);
``make_memory`` builds the memory that holds it; the engine drives it through ``Memory``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

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
    sequence ever holds what it should not. One that was being cut in the middle, shifted or replaced may be
    shorter, or gone.
    """

    n_ctx: int

    @property
    def generation(self) -> int:
        """Changes whenever a capacity or an address may have changed."""
        ...

    @property
    def max_capacity(self) -> int:
        """Largest capacity in cells of any stream: what compute buffers are sized for."""
        ...

    def init_batch(self, batch: Batch, n_ubatch: int) -> list[UBatch]:
        """Open a decode call: split the batch into ubatches of at most ``n_ubatch`` tokens, and grow to hold them all.

        Raises CacheFull, and RuntimeError while another call is open.
        """
        ...

    def apply(self, ubatch: UBatch) -> None:
        """Count the next ubatch's cells as used, before its forward pass."""
        ...

    def commit(self) -> None:
        """Close the call: its tokens stay."""
        ...

    def rollback(self) -> None:
        """Close the call, if one is open: sequences and capacities are as before ``init_batch``."""
        ...

    def seq_rm(self, seq_id: int, p0: int = 0, p1: int = -1) -> bool:
        """Forget positions. The whole of a sequence always works and closes its stream."""
        ...

    def seq_cp(self, src: int, dst: int, p0: int = 0, p1: int = -1) -> bool:
        """Replace ``dst`` by a copy of a range of ``src``; CacheFull if there is no room."""
        ...

    def seq_keep(self, seq_id: int) -> None:
        """Forget all other sequences."""
        ...

    def seq_add(self, seq_id: int, p0: int, p1: int, delta: int) -> bool:
        """Shift positions by ``delta``; K is re-rotated."""
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
        """Whether ``seq_rm(seq_id, p0)`` works for any ``p0`` that is held; if not, where a checkpoint was made."""
        ...

    def seq_ids(self) -> Sequence[int]:
        """Sequences that hold anything, ascending."""
        ...

    def checkpoint(self, seq_id: int) -> bool:
        """Remember the sequence's end, so that a later ``seq_rm(seq_id, p_end)`` can go back to it.

        Free (and always True) for attention memory; recurrent memory copies its state, charged to
        the budget, and returns False where there is no room.
        """
        ...

    def truncation_points(self, seq_id: int, p_max: int) -> int:
        """The largest ``p0 <= p_max`` for which ``seq_rm(seq_id, p0)`` would succeed (0: only as a whole)."""
        ...

    def clear(self) -> None:
        """Forget all sequences and give their memory back; also ends an open call."""
        ...

    def resize(self, n_cells: int, seq_id: int | None = None) -> None:
        """Set the capacity of one sequence, opened if need be, or of all open ones, to ``n_cells``: all or none.

        Cells in use stay. A later decode call grows the capacity again. Raises InvalidRequest below what is used or
        above ``n_ctx``, CacheFull where there is no room, RuntimeError inside a decode call. States have one size.
        """
        ...

    def shrink_to_fit(self, seq_id: int | None = None) -> int:
        """Give back spare capacity of one sequence, or of all; returns the bytes given back."""
        ...

    def stats(self) -> MemoryStats:
        """What it holds and commits now."""
        ...

    def check(self) -> None:
        """Assert every invariant (tests call it after each operation)."""
        ...

    def close(self) -> None:
        """Give everything back; of no use after that."""
        self.clear()
