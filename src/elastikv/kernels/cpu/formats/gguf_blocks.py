"""GGUF's q8_0 and q4_0 weights: blocks of 32 values, each with its own float16 scale in front.

q8_0: 34 bytes, the scale and 32 int8. q4_0: 18 bytes, the scale and 16 bytes of which byte i holds value i in
its low four bits and value ``i + 16`` in its high ones, both 8 too large.
"""

from __future__ import annotations

from llvmlite import ir
from typing_extensions import override

from elastikv.kernels.cpu.formats.weights import BlockLayout
from elastikv.kernels.cpu.simd import int8_dots
from elastikv.kernels.cpu.simd.features import has_vnni
from elastikv.kernels.cpu.simd.int8_dots import BLOCKS, DotCode, I8x32, dots_by
from elastikv.kernels.cpu.simd.int8_panel import BlockCode, PanelFormat, unpack_by
from elastikv.kernels.cpu.simd.int8_row import multiply_by
from elastikv.kernels.cpu.simd.math import fma, splat
from elastikv.kernels.cpu.simd.memory import load_f32, load_half, load_high_nibbles, load_i8, load_low_nibbles
from elastikv.kernels.cpu.simd.vector import Vector

BLOCK = 32
"""Values that share a scale."""


# Without VPDPBUSD, weights of 8 bits are multiplied with their signs.
_Q8_0_PANEL = PanelFormat(bias=128, highest=255) if has_vnni() else PanelFormat(bias=0, highest=None)
_Q4_0_PANEL = PanelFormat(bias=8, highest=15)


def _read_q8_0(code: BlockCode) -> None:
    code.put_scales(0, code.halves_at(0))
    for index, word in enumerate([*code.words(2), *code.words(18)]):
        unsigned = code.builder.xor(word, code.constant(0x80808080)) if _Q8_0_PANEL.bias else word
        code.put_values(0, index, unsigned)


def _read_q4_0(code: BlockCode) -> None:
    code.put_scales(0, code.halves_at(0))
    for index, word in enumerate(code.words(2)):
        code.put_values(0, index, code.bits(word, 0, 0x0F0F0F0F))
        code.put_values(0, index + 4, code.bits(word, 4, 0x0F0F0F0F))


_unpack_q8_0, _multiply_q8_0 = unpack_by(_Q8_0_PANEL, _read_q8_0), multiply_by(_Q8_0_PANEL, _read_q8_0)
_unpack_q4_0, _multiply_q4_0 = unpack_by(_Q4_0_PANEL, _read_q4_0), multiply_by(_Q4_0_PANEL, _read_q4_0)


def _dots_of_q8_0(code: DotCode) -> ir.Value:
    for block in range(BLOCKS):
        code.put_signed(block, code.load(34 * block + 2, I8x32))
    return code.products(code.halves_at(34))


_dots_q8_0 = dots_by(_Q8_0_PANEL, 34 * BLOCKS, _dots_of_q8_0)


class Q8_0Blocks(BlockLayout):  # noqa: N801
    """34 bytes a block: a float16 scale, 32 int8."""

    label = "q8_0 blocks"
    block_values = BLOCK
    block_bytes = 34
    panel = _Q8_0_PANEL
    in_order = int8_dots.pays()

    @override
    def load(self, row: int, scales: int, start: int) -> Vector:
        block = row + start // BLOCK * 34
        return load_i8(block + 2 + start % BLOCK) * splat(load_half(block))

    @override
    def dot_block(self, row: int, start: int, x: int, sums: Vector) -> Vector:
        block = row + start // BLOCK * 34
        products = fma(load_i8(block + 18), load_f32(x + 64), load_i8(block + 2) * load_f32(x))
        return fma(splat(load_half(block)), products, sums)

    @override
    def unpack_block(self, rows: int, offset: int, out: int, ahead: int) -> None:
        _unpack_q8_0(rows, offset, out, ahead)

    @override
    def multiply_block(self, rows: int, offset: int, x: int, ahead: int, sums: Vector) -> Vector:
        return _multiply_q8_0(rows, offset, x, ahead, sums)

    @override
    def dots(self, row: int, x: int, starts: int, upper_starts: int, n: int, out: int) -> None:
        _dots_q8_0(row, x, starts, upper_starts, n, out)


class Q4_0Blocks(BlockLayout):  # noqa: N801
    """18 bytes a block: a float16 scale, 16 bytes of nibbles."""

    label = "q4_0 blocks"
    block_values = BLOCK
    block_bytes = 18
    panel = _Q4_0_PANEL

    @override
    def load(self, row: int, scales: int, start: int) -> Vector:
        block = row + start // BLOCK * 18
        if start % BLOCK == 0:
            return load_low_nibbles(block + 2) * splat(load_half(block))
        return load_high_nibbles(block + 2) * splat(load_half(block))

    @override
    def dot_block(self, row: int, start: int, x: int, sums: Vector) -> Vector:
        block = row + start // BLOCK * 18
        low = load_low_nibbles(block + 2) * load_f32(x)
        return fma(splat(load_half(block)), fma(load_high_nibbles(block + 2), load_f32(x + 64), low), sums)

    @override
    def unpack_block(self, rows: int, offset: int, out: int, ahead: int) -> None:
        _unpack_q4_0(rows, offset, out, ahead)

    @override
    def multiply_block(self, rows: int, offset: int, x: int, ahead: int, sums: Vector) -> Vector:
        return _multiply_q4_0(rows, offset, x, ahead, sums)


Q8_0_BLOCKS, Q4_0_BLOCKS = Q8_0Blocks(), Q4_0Blocks()
