"""What products with packed weights ask of their format: GGUF's blocks, in which scales lie between the values."""

from __future__ import annotations

from abc import abstractmethod

from typing_extensions import override

from elastikv.kernels.cpu.formats.layout import Layout, compiled, compiled_constant
from elastikv.kernels.cpu.simd.int8_panel import PanelFormat
from elastikv.kernels.cpu.simd.vector import Vector

compiled_constant("block_values")
compiled_constant("block_bytes")
compiled_constant("panel_numbers")
compiled_constant("in_order")


class BlockLayout(Layout):
    """One format of packed weights. A row is a row of the matrix, of whole blocks."""

    block_values: int
    block_bytes: int

    panel: PanelFormat
    """What products of integers take the weights to be."""

    in_order: bool = False
    """Whether a single row of x is multiplied by ``dots``, rather than by ``multiply_block``."""

    @property
    def panel_numbers(self) -> tuple[int, int, int, int]:
        """Of ``panel``, for kernels: bytes of a block of sixteen rows, and of a row of x; bias; ``scales``.

        The last is 0 for "one", 1 for "minimum", 2 for "halves".
        """
        panel = self.panel
        kinds = {"one": 0, "minimum": 1, "halves": 2}
        return panel.block_bytes, panel.token_bytes, panel.bias, kinds[panel.scales]

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
    @abstractmethod
    def unpack_block(self, rows: int, offset: int, out: int, ahead: int) -> None:
        """One block of sixteen rows, ``offset`` bytes behind the addresses at ``rows``, to a panel.

        See ``simd/int8_panel``, also for ``ahead``. A block of the packed type may be several of the panel.
        """

    @compiled
    @abstractmethod
    def multiply_block(self, rows: int, offset: int, x: int, ahead: int, sums: Vector) -> Vector:
        """``sums`` plus such a block of sixteen rows times as many values of one row of x.

        x: address of these, see ``simd/int8_row``.
        """

    @compiled
    def dots(self, row: int, x: int, starts: int, upper_starts: int, n: int, out: int) -> None:
        """n times 256 values from an address on times as many of one row of x, where ``in_order``.

        See ``simd/int8_dots``.
        """
        raise NotImplementedError
