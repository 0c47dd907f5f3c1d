"""Prefill attention's products of chunks of cells, and what its parts agree on. See ``prefill``.

A chunk's K and V are packed once for all rows of queries: as panels (``simd/word_tile``) of sixteen cells or sixteen
columns of V. There are two kinds of words: ``products_f32`` and ``products_int16``.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from numba.extending import register_jitable

from elastikv.kernels.cpu.formats.layout import Tag, compiled, compiled_constant, compiled_inline, store_values
from elastikv.kernels.cpu.formats.plain import F32
from elastikv.kernels.cpu.jit import inlined, typed
from elastikv.kernels.cpu.simd.math import splat
from elastikv.kernels.cpu.simd.vector import LANES, Scalar

CHUNK = 512
"""Cells of a chunk."""

PANEL_BYTES = 64
"""Bytes of a panel's word, all its columns."""

UNITS = 2 * LANES
"""float32 values that ``softmax`` may leave for each row."""

LOW = np.float32(-1e30)
"""The score of a cell that is not seen: below every other, yet finite."""


@typed(register_jitable)
def padded(width: int) -> int:
    """Whole vectors."""
    return (width + LANES - 1) // LANES * LANES


@inlined
def fill(row: int, begin: int, end: int, value: Scalar) -> None:
    """Set the float32 ``begin .. end`` of a row."""
    for start in range(begin, end, LANES):
        store_values(F32, row, start, end, splat(value))


compiled_constant("weight_bytes")


class Products(Tag):
    """How queries, keys, weights and values are multiplied. Arguments that are not described are addresses.

    weight_bytes: bytes of one softmax weight. Rows of queries come ``word_tile.ROWS`` at a time; scores and weights are
    ``[ROWS, CHUNK]``.
    """

    weight_bytes: int

    @compiled_inline
    @abstractmethod
    def key_words(self, d: int) -> int:
        """Words of a key."""

    @compiled
    @abstractmethod
    def pack_keys(self, layout: Any, rows: tuple[int, int, int, int], count: int, d: int, out: int, units: int) -> None:
        """Pack up to sixteen keys. rows: first row, its scales, bytes between either; units: sixteen float32."""

    @compiled
    @abstractmethod
    def pack_values(
        self, layout: Any, rows: tuple[int, int, int, int], count: int, start: int, dv: int, out: int, units: int
    ) -> None:
        """Pack the columns ``start .. start + 15`` of ``count`` rows of V, of a whole chunk at most."""

    @compiled
    @abstractmethod
    def write_query(self, source: int, d: int, out: int) -> Scalar:
        """Write a row of queries as words; returns what its scores are to be multiplied with."""

    @compiled
    @abstractmethod
    def scores(self, queries: int, keys: int, units: int, d: int, panels: tuple[int, int], out: int) -> None:
        """Multiply queries ``[ROWS, padded(d)]`` with the panels of keys ``begin .. end``; float32 scores."""

    @compiled
    @abstractmethod
    def softmax(
        self, row: int, weights: int, units: int, cells: tuple[int, int], factor: Scalar, before: Scalar
    ) -> tuple[Scalar, Scalar, Scalar]:
        """Turn a row's scores of cells ``begin .. end`` (multiples of sixteen) into weights.

        Returns (maximum, what sums of earlier chunks are to be multiplied with, sum of weights); factor: what makes
        scores powers of two; before: the maximum up to here, which the weights' sum and values' are relative to, too.
        """

    @compiled
    @abstractmethod
    def sum_values(self, weights: int, units: int, values: int, cells: tuple[int, int], dv: int, out: int) -> None:
        """Weighted sums of V over cells ``begin .. end``, float32 ``[ROWS, padded(dv)]``, in units of the columns."""
