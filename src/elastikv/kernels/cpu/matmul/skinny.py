"""``x @ weight.T`` where the weights are multiplied as they lie in memory: one entry to all such kernels.

Which of them multiplies depends on the weight's layout, on the type that x is converted to, and on whether there is one
row or more. The first two make a ``Product``, a tag that kernels are compiled for (as layouts are).
"""

from __future__ import annotations

import functools
import sys
from typing import Any, Literal

from numba import types
from numba.extending import overload

from elastikv.kernels.cpu.formats.layout import Layout, layout_of, tag_type
from elastikv.kernels.cpu.jit import fused, typed
from elastikv.kernels.cpu.matmul import gemm_int8, skinny_bf16, skinny_f32
from elastikv.kernels.cpu.matmul.arguments import Activations, Matrix

XType = Literal["f32", "bf16", "int8"]
"""The type that x is converted to before it is multiplied."""

_ONE: dict[XType, Any] = {"f32": skinny_f32.multiply, "int8": gemm_int8.multiply}
_SEVERAL: dict[XType, Any] = {"f32": skinny_f32.multiply, "bf16": skinny_bf16.multiply, "int8": gemm_int8.multiply}

_MAX_ROWS: dict[XType, int] = {"f32": 8, "bf16": 16, "int8": sys.maxsize}


@tag_type
class ProductType(types.Type):
    """numba's type of a product tag."""

    def __init__(self, weight: Layout, one: XType, several: XType) -> None:
        self.weight = weight.label
        self.one = one
        self.several = several
        super().__init__(name=f"product({weight.label}, {one}, {several})")


class Product:
    """A weight's layout, and the types that x is converted to: one row of it, and several."""

    def __init__(self, weight: Layout, one: XType, several: XType) -> None:
        self.max_rows = _MAX_ROWS[several]
        """Rows of x up to which this beats torch's products of whole matrices."""
        self._numba_type_ = ProductType(weight, one, several)


@functools.cache
def product_of(weight: Layout, one: XType, several: XType) -> Product:
    """The one tag for these. bf16 and int8 need ``n_in % 32 == 0``."""
    return Product(weight, one, several)


def multiply(product: Any, matrix: Matrix, activations: Activations) -> None:
    """``out = x @ weight.T + bias`` for up to ``max_rows`` rows of x, float32. For compiled callers."""
    raise NotImplementedError


@typed(overload(multiply))
def _choose(product: Any, matrix: Any, activations: Any) -> Any:
    layout = layout_of(product.weight)
    multiply_one, multiply_several = _ONE[product.one], _SEVERAL[product.several]

    def apply(product: Any, matrix: Any, activations: Any) -> Any:
        if activations[2] == 1:
            multiply_one(layout, matrix, activations)
        else:
            multiply_several(layout, matrix, activations)

    return apply


@fused
def multiply_rows(product: Any, matrix: Matrix, activations: Activations) -> None:
    """``out = x @ weight.T + bias`` for up to ``max_rows`` rows of x, float32. For Python."""
    multiply(product, matrix, activations)
