"""GGUF's packed weight rows as layouts: blocks of 32 values, each with its own float16 scale in front.

q8_0: 34 bytes, the scale and 32 int8. q4_0: 18 bytes, the scale and 16 bytes of which byte i holds value i in
its low four bits and value ``i + 16`` in its high ones, both 8 too large.
"""

from __future__ import annotations

from typing import Any

from numba.extending import overload

from elastikv.kernels.cpu.layouts import BLOCK, Layout, load
from elastikv.kernels.cpu.vector import Vector, load_f32, load_half, load_high_nibbles, load_i8, load_low_nibbles
from elastikv.kernels.cpu.vector_math import fma, splat

Q8_0_BLOCKS = Layout("q8_0 blocks", 0, block=(BLOCK, 34))
Q4_0_BLOCKS = Layout("q4_0 blocks", 0, block=(BLOCK, 18))


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
