"""GGUF's k-quants: blocks of 256 weights in eight parts, with small integer scales of their own.

  q4_k  144 bytes: d, dmin (float16); 12 bytes of 6-bit scales and minima; 128 bytes of nibbles
  q5_k  176 bytes: as q4_k, with 32 bytes of fifth bits in front of the nibbles
  q6_k  210 bytes: 128 bytes of nibbles; 64 bytes of fifth and sixth bits; 16 int8 scales; d (float16)

In q4_k and q5_k a value is ``d scale q - dmin minimum``, with a scale and a minimum for each part; two parts share 32
bytes, the first has their low nibbles. In q6_k it is ``d scale (q - 32)``, with a scale for each half of a part; four
parts share 64 bytes, the first two have their low nibbles. The format is that of ggml-quants.h.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from typing_extensions import override

from elastikv.kernels.cpu.formats.layout import compiled
from elastikv.kernels.cpu.formats.weights import BlockLayout
from elastikv.kernels.cpu.jit import inlined
from elastikv.kernels.cpu.simd import int8_dots
from elastikv.kernels.cpu.simd.int8_dots import DotCode, I8x32, dots_by
from elastikv.kernels.cpu.simd.int8_panel import BlockCode, PanelFormat, unpack_by
from elastikv.kernels.cpu.simd.int8_row import multiply_by
from elastikv.kernels.cpu.simd.math import fma, splat
from elastikv.kernels.cpu.simd.memory import load_byte, load_f32, load_half, load_signed_byte
from elastikv.kernels.cpu.simd.vector import (
    I8,
    I32,
    I64,
    LANES,
    F32x16,
    I32x16,
    Vector,
    operation,
    pointer,
    shuffled,
    splat_value,
    vector_type,
)

_BLOCK = 256
_PART = 32


@operation(vector_type, *[types.intp] * 5)
def _load_bits(
    builder: ir.IRBuilder,
    low: ir.Value,
    low_shift: ir.Value,
    high: ir.Value,
    high_shift: ir.Value,
    n_high: ir.Value,
) -> ir.Value:
    """Sixteen integers: four bits each from the bytes at ``low``, and n_high bits above from those at ``high``.

    The shifts say where in their bytes the bits are.
    """

    def constant(value: int) -> ir.Constant:
        return ir.Constant(I32x16, [value] * LANES)

    def spread(value: ir.Value) -> ir.Value:
        return splat_value(builder, builder.trunc(value, I32))

    def bits(address: ir.Value, shift: ir.Value, mask: ir.Value) -> ir.Value:
        raw = builder.load(pointer(builder, address), align=1, typ=ir.VectorType(I8, LANES))
        return builder.and_(builder.lshr(builder.zext(raw, I32x16), spread(shift)), mask)

    below = bits(low, low_shift, constant(15))
    above = bits(high, high_shift, builder.sub(builder.shl(constant(1), spread(n_high)), constant(1)))
    return builder.sitofp(builder.or_(below, builder.shl(above, constant(4))), F32x16)


@inlined
def _scale_and_minimum(packed: int, part: int) -> tuple[int, int]:
    """Both have 6 bits: those of parts 0 to 3 lie in bytes 0 to 7, whose upper two bits belong to parts 4 to 7."""
    if part < 4:
        return load_byte(packed + part) & 63, load_byte(packed + part + 4) & 63
    low = load_byte(packed + part + 4)
    scale = (low & 15) | (load_byte(packed + part - 4) >> 6 << 4)
    return scale, (low >> 4) | (load_byte(packed + part) >> 6 << 4)


class KQuantLayout(BlockLayout):
    """What the k-quants share: all is in how sixteen values are loaded."""

    block_values = _BLOCK
    in_order = int8_dots.pays()

    @compiled
    def half_part(self, block: int, part: int, half: int) -> Vector:
        """Sixteen values of a block, from ``32 part + 16 half`` on."""
        raise NotImplementedError

    @override
    def load(self, row: int, scales: int, start: int) -> Vector:
        block, part = row + start // _BLOCK * self.block_bytes, start % _BLOCK // _PART
        return self.half_part(block, part, start % _PART // LANES)

    @override
    def dot_block(self, row: int, start: int, x: int, sums: Vector) -> Vector:
        block, part = row + start // _BLOCK * self.block_bytes, start % _BLOCK // _PART
        sums = fma(self.half_part(block, part, 0), load_f32(x), sums)
        return fma(self.half_part(block, part, 1), load_f32(x + 64), sums)


@inlined
def _with_minimum(block: int, part: int, half: int, n_high: int) -> Vector:
    """``half_part`` of q4_k (no bits above the nibbles) and q5_k (one)."""
    scale, minimum = _scale_and_minimum(block + 4, part)
    factor = load_half(block) * np.float32(scale)
    offset = load_half(block + 2) * np.float32(-minimum)
    nibbles = block + 16 + n_high * 32 + part // 2 * 32 + half * 16
    integers = _load_bits(nibbles, part % 2 * 4, block + 16 + half * 16, part, n_high)
    return fma(integers, splat(factor), splat(offset))


# --- a block as integers

_Q4_K_PANEL = PanelFormat(bias=0, highest=15, scales="minimum")
_Q5_K_PANEL = PanelFormat(bias=0, highest=31, scales="minimum")
_Q6_K_PANEL = PanelFormat(bias=32, highest=63, scales="halves")


def _read_scales_and_minima(code: BlockCode) -> None:
    """See ``_scale_and_minimum``. The first 16 bytes are d, dmin and these: four words of each row."""
    halves, first, second, third = code.words(0)
    d, dmin = code.low_half(halves), code.builder.fneg(code.high_half(halves))
    for part in range(8):
        shift = part % 4 * 8
        if part < 4:
            scale, minimum = code.bits(first, shift, 63), code.bits(second, shift, 63)
        else:
            scale = code.builder.or_(code.bits(third, shift, 15), code.bits(first, shift + 2, 0x30))
            minimum = code.builder.or_(code.bits(third, shift + 4, 15), code.bits(second, shift + 2, 0x30))
        numbers = (code.builder.sitofp(number, F32x16) for number in (scale, minimum))
        code.put_scales(part, *(code.builder.fmul(*pair) for pair in zip(numbers, (d, dmin), strict=True)))


def _read_nibbles(code: BlockCode, nibbles_at: int, fifths_at: int | None) -> None:
    """Two parts share 32 bytes; bit i of the bytes with the fifth bits belongs to part i."""
    fifths = [] if fifths_at is None else [*code.words(fifths_at), *code.words(fifths_at + 16)]
    for part in range(0, 8, 2):
        start = nibbles_at + 16 * part
        for index, word in enumerate([*code.words(start), *code.words(start + 16)]):
            for nibble in range(2):
                values = code.bits(word, 4 * nibble, 0x0F0F0F0F)
                if fifths:
                    fifth = code.bits(fifths[index], part + nibble - 4, 0x10101010)
                    values = code.builder.or_(values, fifth)
                code.put_values(part + nibble, index, values)


def _read_q4_k(code: BlockCode) -> None:
    _read_scales_and_minima(code)
    _read_nibbles(code, 16, None)


def _read_q5_k(code: BlockCode) -> None:
    _read_scales_and_minima(code)
    _read_nibbles(code, 48, 16)


def _read_q6_k(code: BlockCode) -> None:
    d, scales = code.halves_at(208), code.words(192)
    for part in range(8):
        pair = []
        for index in (2 * part, 2 * part + 1):
            at_the_top = code.bits(scales[index // 4], index % 4 * 8 - 24, 0xFF000000)
            number = code.builder.ashr(at_the_top, code.constant(24))
            pair.append(code.builder.fmul(code.builder.sitofp(number, F32x16), d))
        code.put_scales(part, *pair)
    for half in range(2):
        low = [word for start in range(0, 64, 16) for word in code.words(64 * half + start)]
        high = [word for start in range(0, 32, 16) for word in code.words(128 + 32 * half + start)]
        for part in range(4):
            for index in range(8):
                below = code.bits(low[part % 2 * 8 + index], part // 2 * 4, 0x0F0F0F0F)
                above = code.bits(high[index], 2 * part - 4, 0x30303030)
                code.put_values(4 * half + part, index, code.builder.or_(below, above))


_unpack_q4_k, _multiply_q4_k = unpack_by(_Q4_K_PANEL, _read_q4_k), multiply_by(_Q4_K_PANEL, _read_q4_k)
_unpack_q5_k, _multiply_q5_k = unpack_by(_Q5_K_PANEL, _read_q5_k), multiply_by(_Q5_K_PANEL, _read_q5_k)
_unpack_q6_k, _multiply_q6_k = unpack_by(_Q6_K_PANEL, _read_q6_k), multiply_by(_Q6_K_PANEL, _read_q6_k)


# --- a block of one row, in its order


def _dots_with_minima(code: DotCode, nibbles_at: int, fifths_at: int | None) -> ir.Value:
    builder = code.builder
    fifths = None if fifths_at is None else code.load(fifths_at, I8x32)
    for part in range(0, 8, 2):
        both = code.load(nibbles_at + 16 * part, I8x32)
        for nibble in range(2):
            values = code.bits(both, 4 * nibble, 15)
            if fifths is not None:
                values = builder.or_(values, code.bits(fifths, part + nibble - 4, 16))
            code.put(part + nibble, values)
    first, second, third = (code.load(offset, I32) for offset in (4, 8, 12))  # see _scale_and_minimum

    def bits(word: ir.Value, shift: int, mask: int) -> ir.Value:
        return builder.and_(builder.lshr(word, I32(shift)), I32(mask))

    def numbers(low: ir.Value, high: ir.Value, upper_bits: ir.Value, factor: ir.Value) -> ir.Value:
        above = builder.or_(high, builder.shl(bits(upper_bits, 6, 0x03030303), I32(4)))
        both = builder.or_(builder.zext(low, I64), builder.shl(builder.zext(above, I64), I64(32)))
        integers = builder.zext(builder.bitcast(both, ir.VectorType(I8, 8)), int8_dots.I32x8)
        return builder.fmul(builder.sitofp(integers, int8_dots.F32x8), factor)

    scales = numbers(bits(first, 0, 0x3F3F3F3F), bits(third, 0, 0x0F0F0F0F), first, code.half_at(0))
    minima = numbers(bits(second, 0, 0x3F3F3F3F), bits(third, 4, 0x0F0F0F0F), second, builder.fneg(code.half_at(2)))
    return code.products(scales, minima)


def _dots_of_q6_k(code: DotCode) -> ir.Value:
    builder = code.builder
    for first in range(0, 8, 4):
        low = [code.load(16 * first + offset, I8x32) for offset in (0, 32)]
        high = code.load(128 + 8 * first, I8x32)
        for part in range(4):
            below, above = code.bits(low[part % 2], part // 2 * 4, 15), code.bits(high, 2 * part - 4, 0x30)
            code.put(first + part, builder.or_(below, above))
    raw, d = code.load(192, ir.VectorType(I8, LANES)), code.half_at(208)
    halves = (shuffled(builder, raw, raw, list(range(first, LANES, 2))) for first in range(2))
    integers = (builder.sext(half, int8_dots.I32x8) for half in halves)
    return code.products(*(builder.fmul(builder.sitofp(each, int8_dots.F32x8), d) for each in integers))


_dots_q4_k = dots_by(_Q4_K_PANEL, 144, lambda code: _dots_with_minima(code, 16, None))
_dots_q5_k = dots_by(_Q5_K_PANEL, 176, lambda code: _dots_with_minima(code, 48, 16))
_dots_q6_k = dots_by(_Q6_K_PANEL, 210, _dots_of_q6_k)


# --- the layouts


class Q4_KLayout(KQuantLayout):  # noqa: N801
    """144 bytes a block: 4-bit values, a scale and a minimum for each part."""

    label = "q4_k blocks"
    block_bytes = 144
    panel = _Q4_K_PANEL

    @override
    def half_part(self, block: int, part: int, half: int) -> Vector:
        return _with_minimum(block, part, half, 0)

    @override
    def multiply_block(self, rows: int, offset: int, x: int, ahead: int, sums: Vector) -> Vector:
        return _multiply_q4_k(rows, offset, x, ahead, sums)

    @override
    def unpack_block(self, rows: int, offset: int, out: int, ahead: int) -> None:
        _unpack_q4_k(rows, offset, out, ahead)

    @override
    def dots(self, row: int, x: int, starts: int, upper_starts: int, n: int, out: int) -> None:
        _dots_q4_k(row, x, starts, upper_starts, n, out)


class Q5_KLayout(KQuantLayout):  # noqa: N801
    """176 bytes a block: 5-bit values, a scale and a minimum for each part."""

    label = "q5_k blocks"
    block_bytes = 176
    panel = _Q5_K_PANEL

    @override
    def half_part(self, block: int, part: int, half: int) -> Vector:
        return _with_minimum(block, part, half, 1)

    @override
    def multiply_block(self, rows: int, offset: int, x: int, ahead: int, sums: Vector) -> Vector:
        return _multiply_q5_k(rows, offset, x, ahead, sums)

    @override
    def unpack_block(self, rows: int, offset: int, out: int, ahead: int) -> None:
        _unpack_q5_k(rows, offset, out, ahead)

    @override
    def dots(self, row: int, x: int, starts: int, upper_starts: int, n: int, out: int) -> None:
        _dots_q5_k(row, x, starts, upper_starts, n, out)


class Q6_KLayout(KQuantLayout):  # noqa: N801
    """210 bytes a block: 6-bit values, a scale for each half of a part."""

    label = "q6_k blocks"
    block_bytes = 210
    panel = _Q6_K_PANEL

    @override
    def half_part(self, block: int, part: int, half: int) -> Vector:
        factor = load_half(block + 208) * np.float32(load_signed_byte(block + 192 + part * 2 + half))
        nibbles = block + part // 4 * 64 + part % 2 * 32 + half * 16
        upper = block + 128 + part // 4 * 32 + half * 16
        integers = _load_bits(nibbles, part // 2 % 2 * 4, upper, part % 4 * 2, 2)
        return fma(integers, splat(factor), splat(np.float32(-32) * factor))

    @override
    def multiply_block(self, rows: int, offset: int, x: int, ahead: int, sums: Vector) -> Vector:
        return _multiply_q6_k(rows, offset, x, ahead, sums)

    @override
    def unpack_block(self, rows: int, offset: int, out: int, ahead: int) -> None:
        _unpack_q6_k(rows, offset, out, ahead)

    @override
    def dots(self, row: int, x: int, starts: int, upper_starts: int, n: int, out: int) -> None:
        _dots_q6_k(row, x, starts, upper_starts, n, out)


Q4_K_BLOCKS, Q5_K_BLOCKS, Q6_K_BLOCKS = Q4_KLayout(), Q5_KLayout(), Q6_KLayout()
