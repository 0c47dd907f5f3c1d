"""``x @ weight.T`` for a few rows of x: one entry to the kernels that read each weight once.

Which of them multiplies depends on the weight's layout, on what x is rounded to, and on whether there is one row or
more. The first two make a ``Product``, a tag that kernels are compiled for (as layouts are).
"""

from __future__ import annotations

import functools
from typing import Any

from numba import types
from numba.extending import overload

from elastikv.kernels.cpu import gemv, gemv_bf16, gemv_int8
from elastikv.kernels.cpu.gemv import Matrix, Rows
from elastikv.kernels.cpu.jit import fused
from elastikv.kernels.cpu.layouts import BF16, F32, Q8_0, Layout, tag_type


@tag_type
class ProductType(types.Type):
    """numba's type of a product tag."""

    def __init__(self, weight: Layout, one: Layout, several: Layout) -> None:
        self.weight = weight
        self.one = one
        self.several = several
        super().__init__(name=f"product({weight.label}, {one.label}, {several.label})")


class Product:
    """A weight's layout, and what x is rounded to: where there is one row of it, and where there are several."""

    def __init__(self, weight: Layout, one: Layout, several: Layout) -> None:
        self.max_rows = 8 if several is F32 else 16
        """Rows of x up to which reading the weight once beats products of whole matrices."""
        self._numba_type_ = ProductType(weight, one, several)


@functools.cache
def product_of(weight: Layout, one: Layout, several: Layout) -> Product:
    """The one tag for these layouts. Each F32, BF16 (n_in % 32 == 0) or Q8_0 (n_in % 64 == 0)."""
    return Product(weight, one, several)


def multiply(product: Any, matrix: Matrix, rows: Rows) -> None:
    """As ``gemv.multiply``, for compiled callers."""
    raise NotImplementedError


@overload(multiply)
def _choose(product: Any, matrix: Any, rows: Any) -> Any:
    layout = product.weight
    kernels = {F32.label: gemv.multiply, BF16.label: gemv_bf16.multiply, Q8_0.label: gemv_int8.multiply}
    multiply_one, multiply_several = kernels[product.one.label], kernels[product.several.label]

    def apply(product: Any, matrix: Any, rows: Any) -> Any:
        if rows[2] == 1:
            multiply_one(layout, matrix, rows)
        else:
            multiply_several(layout, matrix, rows)

    return apply


@fused
def multiply_rows(product: Any, matrix: Matrix, rows: Rows) -> None:
    """The same for Python."""
    multiply(product, matrix, rows)
