"""What products with packed weights ask of their format: GGUF's blocks, in which scales lie between the values."""

from __future__ import annotations

from abc import abstractmethod

from typing_extensions import override

from elastikv.kernels.cpu.formats.layout import Layout, compiled, compiled_constant
from elastikv.kernels.cpu.simd.vector import Vector

compiled_constant("block_values")
compiled_constant("block_bytes")
compiled_constant("int8_group")


class BlockLayout(Layout):
    """One format of packed weights. A row is a row of the matrix, of whole blocks."""

    block_values: int
    block_bytes: int

    int8_rows: int = 0
    """Rows of x up to which products with int8 values are faster than others, and are there: none, one, or several."""

    int8_group: tuple[int, int, int] | None = None
    """What ``dot_int8`` takes at a time, in pairs of 32 values; how much larger than themselves it takes weights to be,
    divided by 4; how many neighbouring lanes the products of 32 values fall into."""

    @override
    def row_bytes(self, width: int) -> int:
        return width * self.block_bytes // self.block_values

    @override
    def load_part(self, row: int, scales: int, start: int, count: int) -> Vector:
        return self.load(row, scales, start)  # rows are whole blocks: there are no parts

    @compiled
    @abstractmethod
    def dot_block(self, row: int, start: int, x: int, sums: Vector) -> Vector:
        """``sums`` plus the row's 32 values from ``start`` on times the 32 float32 at ``x``, spread over the lanes.

        What scales them is common to the products: it is applied to their sum.
        """

    @compiled
    def dot_int8(self, blocks: int, x: int, start: int, x_scales: int, sums: Vector) -> Vector:
        """``sums`` plus a group of weights times as many int8 values, spread over sixteen float32.

        x, start, x_scales: addresses of the group's first pair, as ``matmul/skinny_int8`` lays it out for this layout.
        """
        raise NotImplementedError
