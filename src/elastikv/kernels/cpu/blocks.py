"""GGUF's packed weight rows as layouts: blocks of 32 values, each with its own float16 scale in front.

q8_0: 34 bytes, the scale and 32 int8. q4_0: 18 bytes, the scale and 16 bytes of which byte i holds value i in
its low four bits and value ``i + 16`` in its high ones, both 8 too large.
"""

from __future__ import annotations

from typing import Any

from numba.extending import overload

from elastikv.kernels.cpu.layouts import BLOCK, Layout, load, load_part, row_bytes
from elastikv.kernels.cpu.vector import Vector, load_f32, load_half, load_high_nibbles, load_i8, load_low_nibbles
from elastikv.kernels.cpu.vector_math import fma, splat

Q8_0_BLOCKS = Layout("q8_0 blocks", 0)
Q4_0_BLOCKS = Layout("q4_0 blocks", 0)

_BLOCK_BYTES = {Q8_0_BLOCKS.label: 34, Q4_0_BLOCKS.label: 18}


@overload(row_bytes, inline="always")
def _row_bytes(layout: Any, width: Any) -> Any:
    size = _BLOCK_BYTES.get(layout.label)
    if size is None:
        return None

    def of_blocks(layout: Any, width: Any) -> Any:
        return width // BLOCK * size

    return of_blocks


def add_products(layout: Any, row: int, start: int, x: int, sums: Vector) -> Vector:
    """``sums`` plus a block's 32 values, from ``start`` on, times the 32 float32 at ``x``.

    The scale is common to the block's products: it is applied to their sum.
    """
    raise NotImplementedError


@overload(add_products)
def _add_products(layout: Any, row: Any, start: Any, x: Any, sums: Any) -> Any:
    if layout.label == Q8_0_BLOCKS.label:

        def bytes_(layout: Any, row: Any, start: Any, x: Any, sums: Any) -> Any:
            block = row + start // BLOCK * 34
            products = fma(load_i8(block + 18), load_f32(x + 64), load_i8(block + 2) * load_f32(x))
            return fma(splat(load_half(block)), products, sums)

        return bytes_
    if layout.label == Q4_0_BLOCKS.label:

        def nibbles(layout: Any, row: Any, start: Any, x: Any, sums: Any) -> Any:
            block = row + start // BLOCK * 18
            low = load_low_nibbles(block + 2) * load_f32(x)
            return fma(splat(load_half(block)), fma(load_high_nibbles(block + 2), load_f32(x + 64), low), sums)

        return nibbles
    return None


@overload(load)
def _load(layout: Any, row: Any, scales: Any, start: Any) -> Any:
    if layout.label == Q8_0_BLOCKS.label:

        def bytes_(layout: Any, row: Any, scales: Any, start: Any) -> Any:
            block = row + start // BLOCK * 34
            return load_i8(block + 2 + start % BLOCK) * splat(load_half(block))

        return bytes_
    if layout.label == Q4_0_BLOCKS.label:

        def nibbles(layout: Any, row: Any, scales: Any, start: Any) -> Any:
            block = row + start // BLOCK * 18
            if start % BLOCK == 0:
                return load_low_nibbles(block + 2) * splat(load_half(block))
            return load_high_nibbles(block + 2) * splat(load_half(block))

        return nibbles
    return None


@overload(load_part)
def _load_part(layout: Any, row: Any, scales: Any, start: Any, count: Any) -> Any:
    if layout.label not in (Q8_0_BLOCKS.label, Q4_0_BLOCKS.label):
        return None

    def whole(layout: Any, row: Any, scales: Any, start: Any, count: Any) -> Any:
        return load(layout, row, scales, start)  # rows are whole blocks: there are no parts

    return whole
