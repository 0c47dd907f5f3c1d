"""Products of queries with K rows, in the arithmetic that suits the layout: what ``tiles.score_*`` is made of.

float32 for 32-bit and 16-bit cells. The blocks of q8_0 are multiplied as whole numbers, with fewer instructions:
queries are rounded to 16 bits, which errs by at most 2^-16 of the head's largest value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload

from elastikv.kernels.cpu.jit import inlined
from elastikv.kernels.cpu.layouts import BLOCK, F16, F32, largest, load_values, scale_bytes
from elastikv.kernels.cpu.vector import (
    LANES,
    Vector,
    load_f32,
    load_float,
    store_f32,
    store_float,
    store_i16,
)
from elastikv.kernels.cpu.vector_math import fma, round_even, splat
from elastikv.kernels.cpu.words import (
    add_dots,
    load_i8_block,
    load_words,
    no_sums,
    to_float,
)

_ZERO = np.float32(0)
_LARGEST = np.float32(32767)


def key_step(layout: Any) -> int:
    """Values that ``load_key`` and ``load_query`` take at a time."""
    raise NotImplementedError


def put_query(layout: Any, source: int, d: int, wide: int, scale: float, out: int) -> None:
    """Write one query head, times ``scale``, for ``load_query``.

    source: d float32; out: 4 bytes for each of ``wide`` values, zeros; wide is a multiple of 32.
    """
    raise NotImplementedError


def finish_scores(layout: Any, q: int, wide: int, scores: int, n: int) -> None:
    """Multiply n sums of products with the query head at ``q`` by what is common to all."""
    raise NotImplementedError


def load_key(layout: Any, row: int, scales: int, start: int, width: int) -> Any:
    """Values of a K row from ``start`` on, zeros from ``width`` on. scales: this row's, from ``widen_scales``."""
    raise NotImplementedError


def load_query(layout: Any, q: int, start: int) -> Any:
    """The same of what ``put_query`` has written."""
    raise NotImplementedError


def add_product(layout: Any, key: Any, query: Any, sums: Vector) -> Vector:
    """``sums + key * query``, spread over the lanes."""
    raise NotImplementedError


@overload(key_step)
def _key_step(layout: Any) -> Any:
    step = BLOCK if layout.label == "q8_0" else LANES

    def get(layout: Any) -> Any:
        return step

    return get


@overload(put_query)
def _put_query(layout: Any, source: Any, d: Any, wide: Any, scale: Any, out: Any) -> Any:
    if layout.label == "q8_0":

        def rounded(layout: Any, source: Any, d: Any, wide: Any, scale: Any, out: Any) -> Any:
            """The words, and behind them what they are to be multiplied by."""
            top = largest(source, d)
            inverse = splat(_LARGEST / top if top > 0 else _ZERO)
            for start in range(0, d, LANES):
                store_i16(out + start * 2, round_even(load_values(F32, source, 0, start, d) * inverse))
            store_float(out + wide * 2, top / _LARGEST * scale)

        return rounded

    def exact(layout: Any, source: Any, d: Any, wide: Any, scale: Any, out: Any) -> Any:
        for start in range(0, d, LANES):
            store_f32(out + start * 4, load_values(F32, source, 0, start, d) * splat(scale))

    return exact


@overload(finish_scores)
def _finish_scores(layout: Any, q: Any, wide: Any, scores: Any, n: Any) -> Any:
    if layout.label == "q8_0":

        def multiply(layout: Any, q: Any, wide: Any, scores: Any, n: Any) -> Any:
            factor = splat(load_float(q + wide * 2))
            for start in range(0, n, LANES):
                store_f32(scores + start * 4, load_f32(scores + start * 4) * factor)

        return multiply

    def nothing(layout: Any, q: Any, wide: Any, scores: Any, n: Any) -> Any:
        pass

    return nothing


@inlined
def widen_scales(layout: Any, scales: int, begin: int, end: int, n_heads: int, d: int, out: int) -> None:
    """Write the scales of cells ``begin..end``, all heads, in float32, one after the other. None for other layouts."""
    cell_bytes = n_heads * scale_bytes(layout, d)
    source, count = scales + begin * cell_bytes, (end - begin) * cell_bytes // 2
    for start in range(0, count, LANES):
        store_f32(out + start * 4, load_values(F16, source, 0, start, count))


@overload(load_key)
def _load_key(layout: Any, row: Any, scales: Any, start: Any, width: Any) -> Any:
    if layout.label == "q8_0":

        def block(layout: Any, row: Any, scales: Any, start: Any, width: Any) -> Any:
            scale = splat(load_float(scales + start // BLOCK * 4))
            return load_i8_block(row, start, width), scale

        return block

    def values(layout: Any, row: Any, scales: Any, start: Any, width: Any) -> Any:
        return load_values(layout, row, scales, start, width)

    return values


@overload(load_query)
def _load_query(layout: Any, q: Any, start: Any) -> Any:
    if layout.label == "q8_0":

        def words(layout: Any, q: Any, start: Any) -> Any:
            return load_words(q + start * 2)

        return words

    def values(layout: Any, q: Any, start: Any) -> Any:
        return load_f32(q + start * 4)

    return values


@overload(add_product)
def _add_product(layout: Any, key: Any, query: Any, sums: Any) -> Any:
    if layout.label == "q8_0":

        def whole(layout: Any, key: Any, query: Any, sums: Any) -> Any:
            words, scale = key
            return fma(to_float(add_dots(words, query, no_sums())), scale, sums)

        return whole

    def exact(layout: Any, key: Any, query: Any, sums: Any) -> Any:
        return fma(key, query, sums)

    return exact
