"""Packed weights unpacked to bytes, rows interleaved: what ``int8_tile`` multiplies with.

A panel holds ``PANEL_ROWS`` rows of a matrix, in groups of sixteen. A block of 32 values of a group is

    512 bytes    eight times sixteen rows' four values, without sign: what a row has next to each other stays so
     64 bytes    sixteen float32, each row's scale
     64 bytes    where ``scales`` is not "one": sixteen float32 more

and blocks follow each other, each with all its groups.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llvmlite import ir
from numba import types
from typing_extensions import override

from elastikv.kernels.cpu.simd.features import has
from elastikv.kernels.cpu.simd.memory import TO_L2, prefetch_line
from elastikv.kernels.cpu.simd.vector import (
    F16,
    I16,
    I32,
    I64,
    LANES,
    F32x16,
    I32x16,
    operation,
    pointer,
    shuffled,
)

BLOCK = 32
"""Values that share a scale of x."""

GROUPS = 2 if has("avx512bw") else 1
"""Groups of sixteen rows in a panel: as many as registers suffice for."""

PANEL_ROWS = GROUPS * LANES


@dataclass(frozen=True, slots=True)
class PanelFormat:
    """What a packed type becomes in a panel.

    bias: how much larger than themselves weights are there, so that they need no sign; highest: the largest that they
    are then, or None where they keep their sign and are as large as they may be (see ``byte_products``).

    scales: a block of a row, as the products see it, is ``scale * (weight - bias)``

    - "one": all there is to it;
    - "minimum": plus the second number, and bias is 0;
    - "halves": the second number is the scale of the upper sixteen.
    """

    bias: int
    highest: int | None
    scales: Literal["one", "minimum", "halves"] = "one"

    @property
    def block_bytes(self) -> int:
        """Bytes of a block of a group."""
        return 16 * BLOCK + (64 if self.scales == "one" else 128)

    @property
    def token_bytes(self) -> int:
        """Bytes of a block of one row of x, see ``int8_tile``."""
        return BLOCK + (12 if self.scales == "halves" else 8)


class BlockCode(ABC):
    """Writes the code that reads one block of the packed type, of sixteen rows.

    rows: address of the sixteen rows' addresses, int64; offset: of the block in each, in bytes; ahead: address of as
    many bytes that will be read later. They are fetched to the second cache little by little, while these are computed
    with.
    """

    def __init__(
        self, builder: ir.IRBuilder, panel: PanelFormat, rows: ir.Value, offset: ir.Value, ahead: ir.Value
    ) -> None:
        self.builder = builder
        self._panel = panel
        self._ahead = ahead
        self._rows = [builder.add(self._load(rows, 8 * row, I64), offset) for row in range(LANES)]

    # What becomes of it: of each block of 32 values, in their order, first the scales, then eight times four values.

    @abstractmethod
    def put_scales(self, block: int, scales: ir.Value, second: ir.Value | None = None) -> None:
        """A block's scales, and its second numbers."""

    @abstractmethod
    def put_values(self, block: int, word: int, values: ir.Value) -> None:
        """Four values of each row, from ``4 * word`` on in a block."""

    def _load(self, address: ir.Value, offset: int, typ: ir.Type) -> ir.Value:
        place = self.builder.add(address, ir.Constant(address.type, offset))
        return self.builder.load(pointer(self.builder, place), align=1, typ=typ)

    # From the packed rows: vectors of sixteen int32, one of each row

    def words(self, offset: int) -> list[ir.Value]:
        """16 bytes from an offset on, as four vectors of four bytes of each row."""
        self._prefetch(offset, 16)
        raw = [self._load(row, offset, ir.VectorType(I32, 4)) for row in self._rows]
        # Four rows' bytes side by side, then 4 x 4 transposed: lanes stay within their quarter, as x86 likes them to.
        a, b, c, d = (self._joined([raw[row] for row in range(first, LANES, 4)]) for first in range(4))
        low, high = [0, 16, 1, 17], [2, 18, 3, 19]
        ab_low, cd_low, ab_high, cd_high = (
            self._in_quarters(x, y, lanes) for lanes in (low, high) for x, y in ((a, b), (c, d))
        )
        pairs = ((ab_low, cd_low), (ab_high, cd_high))
        return [self._in_quarters(x, y, lanes) for x, y in pairs for lanes in ([0, 1, 16, 17], [2, 3, 18, 19])]

    def _prefetch(self, offset: int, n_bytes: int) -> None:
        """As many bytes as are read of all rows, at a place that no others are fetched from."""
        for line in range(LANES * offset, LANES * (offset + n_bytes), 64):
            prefetch_line(self.builder, self.builder.add(self._ahead, ir.Constant(I64, line)), TO_L2)

    def _joined(self, parts: list[ir.Value]) -> ir.Value:
        while len(parts) > 1:
            lanes = list(range(2 * parts[0].type.count))
            pairs = zip(parts[::2], parts[1::2], strict=True)
            parts = [shuffled(self.builder, low, high, lanes) for low, high in pairs]
        return parts[0]

    def _in_quarters(self, a: ir.Value, b: ir.Value, lanes: list[int]) -> ir.Value:
        return shuffled(self.builder, a, b, [quarter + lane for quarter in range(0, LANES, 4) for lane in lanes])

    def halves_at(self, offset: int) -> ir.Value:
        """A float16 of each row, as float32."""
        self._prefetch(offset, 2)
        halves = ir.Constant(ir.VectorType(F16, LANES), ir.Undefined)
        for lane, row in enumerate(self._rows):
            halves = self.builder.insert_element(halves, self._load(row, offset, F16), I32(lane))
        return self.builder.fpext(halves, F32x16)

    # Arithmetic

    def constant(self, value: int) -> ir.Constant:
        """The same number for each row."""
        return ir.Constant(I32x16, [value - (1 << 32) if value >> 31 else value] * LANES)

    def bits(self, word: ir.Value, shift: int, mask: int) -> ir.Value:
        """``word >> shift & mask``; a shift to the left where it is negative."""
        if shift < 0:
            word = self.builder.shl(word, self.constant(-shift))
        elif shift > 0:
            word = self.builder.lshr(word, self.constant(shift))
        return self.builder.and_(word, self.constant(mask))

    def low_half(self, word: ir.Value) -> ir.Value:
        """The lower 16 bits of each row's word, a float16, as float32."""
        halves = self.builder.trunc(word, ir.VectorType(I16, LANES))
        return self.builder.fpext(self.builder.bitcast(halves, ir.VectorType(F16, LANES)), F32x16)

    def high_half(self, word: ir.Value) -> ir.Value:
        """The upper 16 bits."""
        return self.low_half(self.bits(word, 16, 0xFFFF))


class _PanelCode(BlockCode):
    """Writes a block to a panel, at an address."""

    def __init__(self, builder: ir.IRBuilder, panel: PanelFormat, values: Sequence[ir.Value]) -> None:
        rows, offset, self._out, ahead = values
        super().__init__(builder, panel, rows, offset, ahead)

    @override
    def put_scales(self, block: int, scales: ir.Value, second: ir.Value | None = None) -> None:
        self._store(block, 16 * BLOCK, scales)
        if second is not None:
            self._store(block, 16 * BLOCK + 64, second)

    @override
    def put_values(self, block: int, word: int, values: ir.Value) -> None:
        self._store(block, 64 * word, values)

    def _store(self, block: int, offset: int, values: ir.Value) -> None:
        place = ir.Constant(I64, block * GROUPS * self._panel.block_bytes + offset)
        self.builder.store(values, pointer(self.builder, self.builder.add(self._out, place)), align=1)


def unpack_by(panel: PanelFormat, read: Callable[[BlockCode], None]) -> Any:
    """``unpack(rows, offset, out, ahead)``, which kernels call. read: writes the code that reads a block."""

    @operation(types.void, *[types.intp] * 4)
    def unpack(builder: ir.IRBuilder, *values: ir.Value) -> None:
        read(_PanelCode(builder, panel, values))

    return unpack
