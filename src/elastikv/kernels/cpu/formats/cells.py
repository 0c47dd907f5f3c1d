"""What attention asks of a cell format: to be stored, to be multiplied with queries, to be summed up with weights.

Decode attention goes through blocks of 64 cells, and through these in tiles of four cells and one, two or four query
heads. In the arguments:

    shape     (K heads, query heads per K head, d, d padded, dv, dv padded); query heads are padded to 1, 2 or a
              multiple of 4 per K head, widths to multiples of 32
    scores    float32 ``[query head][64 cells]``, and so the weights that they become
    q         4 bytes for each of the padded d values of a query head, as ``put_query`` writes them
    keys, values, scales    addresses of the first cell; a cell's heads follow each other, ``row_bytes`` or
              ``scale_bytes`` each

A backend's kernels find the layout of a cell format by its name, in ``formats.CELLS``.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from elastikv.kernels.cpu.formats.layout import Layout, compiled, compiled_inline
from elastikv.kernels.cpu.simd.vector import Vector

BLOCK_CELLS = 64

SCORE_STRIDE = BLOCK_CELLS * 4
"""Bytes between the scores of two query heads."""

CELLS_PREFETCH = 16384
"""Bytes that prefetching is ahead of reading cells: 8 and 32 KiB are about as fast, 4 KiB a fifth slower."""


class CellLayout(Layout):
    """One cell format. A row is one head of one cell; d is its width."""

    @compiled_inline
    @abstractmethod
    def scale_bytes(self, width: int) -> int:
        """Bytes of the scales of ``width`` values; 0 if there are none."""

    @compiled
    @abstractmethod
    def store_head(self, x: int, d: int, row: int, scales: int) -> None:
        """Quantise the d float32 at ``x`` to a row and its scales."""

    # QK: scores of queries

    @compiled
    @abstractmethod
    def qk_scratch_floats(self, n_kv_heads: int, d: int) -> int:
        """float32 values of scratch that scores need, for the scales of four cells in float32, ``[cell][head][..]``."""

    @compiled
    @abstractmethod
    def put_query(self, source: int, d: int, wide: int, scale: float, out: int) -> None:
        """Write one query head, times ``scale``, as ``load_query`` reads it.

        source: d float32; out: 4 bytes for each of ``wide`` values, zeros; wide is a multiple of 32.
        """

    @compiled
    @abstractmethod
    def key_step(self) -> int:
        """Values that ``load_key`` and ``load_query`` load at a time."""

    @compiled
    @abstractmethod
    def load_key(self, row: int, scales: int, start: int, width: int) -> Any:
        """Values of a K row from ``start`` on, zeros from ``width`` on. scales: this row's, in float32."""

    @compiled
    @abstractmethod
    def load_query(self, q: int, start: int) -> Any:
        """Values of a query head, as many as ``load_key`` loads."""

    @compiled
    @abstractmethod
    def add_product(self, key: Any, query: Any, sums: Vector) -> Vector:
        """``sums + key * query``, spread over the lanes."""

    @compiled
    @abstractmethod
    def finish_scores(self, q: int, wide: int, scores: int, n: int) -> None:
        """Multiply n sums of products with the query head at ``q`` by what is common to all."""

    # PV: sums of values

    @compiled
    @abstractmethod
    def pv_scratch_floats(self, n_kv_heads: int, n_heads: int, dv: int) -> int:
        """float32 values of scratch that ``add_weighted`` needs; n_heads: padded."""

    @compiled
    @abstractmethod
    def add_weighted(
        self, values: int, scales: int, begin: int, end: int, weights: int, sums: int, scratch: int, shape: Any
    ) -> None:
        """Add the weighted V rows of cells ``begin..end``, at most 64, to the sums ``[query head][dv, padded]``."""
