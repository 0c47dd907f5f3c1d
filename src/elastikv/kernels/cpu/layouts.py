"""How values lie in memory (f32, f16, bf16, q8_0), as tags that a kernel is compiled for.

A kernel takes a tag as an argument; ``load`` and ``store`` then mean that layout's own instructions:

    values = load(layout, row, scales, 32)      # values 32..47 of the row at address `row`

``scales`` is the address of a q8_0 row's float16 scales, one per 32 values; the others ignore it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import types
from numba.core.imputils import lower_constant
from numba.extending import NativeValue, models, overload, register_model, unbox

from elastikv.kernels.cpu import vector
from elastikv.kernels.cpu.jit import inlined
from elastikv.kernels.cpu.vector import LANES, Vector, load_half
from elastikv.kernels.cpu.vector_math import absolute, max_lanes, maximum, splat

BLOCK = 32
"""Values that share a scale in q8_0."""

_ZERO = np.float32(0)


def tag_type(cls: type[types.Type]) -> type[types.Type]:
    """Decorates numba's type of a tag: a value that carries nothing but its type."""
    register_model(cls)(models.OpaqueModel)

    @lower_constant(cls)
    def lower(context: Any, builder: Any, typ: types.Type, value: Any) -> Any:
        return context.get_dummy_value()

    @unbox(cls)
    def unbox_tag(typ: types.Type, obj: Any, c: Any) -> NativeValue:
        return NativeValue(c.context.get_dummy_value())

    return cls


@tag_type
class LayoutType(types.Type):
    """numba's type of a layout tag: one type per layout, so that kernels specialise on it."""

    def __init__(self, label: str, value_bytes: int, block: tuple[int, int] | None) -> None:
        self.label = label
        self.value_bytes = value_bytes
        self.block = block
        super().__init__(name=f"layout({label})")


class Layout:
    """A layout tag, as Python passes it to a kernel.

    value_bytes: 0 where scales lie between the values, in blocks: then ``block`` is one's values and bytes.
    """

    def __init__(
        self, label: str, value_bytes: int, has_scales: bool = False, block: tuple[int, int] | None = None
    ) -> None:
        self.label = label
        self.value_bytes = value_bytes
        self.has_scales = has_scales
        self._numba_type_ = LayoutType(label, value_bytes, block)

    def __repr__(self) -> str:
        return f"Layout({self.label})"


F32 = Layout("f32", 4)
F16 = Layout("f16", 2)
BF16 = Layout("bf16", 2)
Q8_0 = Layout("q8_0", 1, has_scales=True)

OF_CELL_TYPE = {layout.label: layout for layout in (F32, F16, BF16, Q8_0)}

OF_DTYPE = {torch.float32: F32, torch.float16: F16, torch.bfloat16: BF16, torch.int8: Q8_0}


def row_bytes(layout: Any, width: int) -> int:
    """Bytes of ``width`` values, without scales."""
    raise NotImplementedError


def scale_bytes(layout: Any, width: int) -> int:
    """Bytes of the scales of ``width`` values; 0 if the layout has none."""
    raise NotImplementedError


def load(layout: Any, row: int, scales: int, start: int) -> Vector:
    """Values ``start .. start + 15`` of a row, widened to float32; ``start`` is a multiple of 16."""
    raise NotImplementedError


def load_part(layout: Any, row: int, scales: int, start: int, count: int) -> Vector:
    """The same for the last ``count < 16`` values; nothing behind them is read, the other lanes are 0."""
    raise NotImplementedError


def store(layout: Any, row: int, start: int, values: Vector) -> None:
    """Narrow float32 values and write them at ``start .. start + 15`` of a row. Not for layouts with scales."""
    raise NotImplementedError


def store_part(layout: Any, row: int, start: int, values: Vector, count: int) -> None:
    """The same for the first ``count < 16`` lanes."""
    raise NotImplementedError


_PLAIN = {
    "f32": (vector.load_f32, vector.load_f32_part, 4),
    "f16": (vector.load_f16, vector.load_f16_part, 2),
    "bf16": (vector.load_bf16, vector.load_bf16_part, 2),
}


_PLAIN_STORES = {
    "f32": (vector.store_f32, vector.store_f32_part),
    "f16": (vector.store_f16, vector.store_f16_part),
    "bf16": (vector.store_bf16, vector.store_bf16_part),
}


@overload(row_bytes, inline="always")
def _row_bytes(layout: Any, width: Any) -> Any:
    if layout.block is not None:
        block_values, block_bytes = layout.block

        def of_blocks(layout: Any, width: Any) -> Any:
            return width * block_bytes // block_values

        return of_blocks
    size = layout.value_bytes

    def implementation(layout: Any, width: Any) -> Any:
        return width * size

    return implementation


@overload(scale_bytes, inline="always")
def _scale_bytes(layout: Any, width: Any) -> Any:
    if layout.label == "q8_0":

        def of_blocks(layout: Any, width: Any) -> Any:
            return (width + BLOCK - 1) // BLOCK * 2

        return of_blocks

    def none(layout: Any, width: Any) -> Any:
        return 0

    return none


@overload(load)
def _load(layout: Any, row: Any, scales: Any, start: Any) -> Any:
    if layout.label == "q8_0":
        load_i8 = vector.load_i8

        def scaled(layout: Any, row: Any, scales: Any, start: Any) -> Any:
            return load_i8(row + start) * splat(load_half(scales + start // BLOCK * 2))

        return scaled
    if layout.label not in _PLAIN:
        return None
    load_plain, _, size = _PLAIN[layout.label]

    def plain(layout: Any, row: Any, scales: Any, start: Any) -> Any:
        return load_plain(row + start * size)

    return plain


@overload(load_part)
def _load_part(layout: Any, row: Any, scales: Any, start: Any, count: Any) -> Any:
    if layout.label == "q8_0":
        load_i8_part = vector.load_i8_part

        def scaled(layout: Any, row: Any, scales: Any, start: Any, count: Any) -> Any:
            return load_i8_part(row + start, count) * splat(load_half(scales + start // BLOCK * 2))

        return scaled
    if layout.block is not None:

        def whole(layout: Any, row: Any, scales: Any, start: Any, count: Any) -> Any:
            return load(layout, row, scales, start)  # rows are whole blocks: there are no parts

        return whole
    if layout.label not in _PLAIN:
        return None
    _, load_plain_part, size = _PLAIN[layout.label]

    def plain(layout: Any, row: Any, scales: Any, start: Any, count: Any) -> Any:
        return load_plain_part(row + start * size, count)

    return plain


@inlined
def load_values(layout: Any, row: int, scales: int, start: int, width: int) -> Vector:
    """Sixteen values of a row from ``start`` on, zeros from ``width`` on."""
    if start + LANES <= width:
        return load(layout, row, scales, start)
    return load_part(layout, row, scales, start, width - start)


@inlined
def largest(x: int, count: int) -> float:
    """The largest magnitude of ``count`` float32."""
    tops = splat(_ZERO)
    for start in range(0, count, LANES):
        tops = maximum(tops, absolute(load_values(F32, x, 0, start, count)))
    return max_lanes(tops)


@overload(store)
def _store(layout: Any, row: Any, start: Any, values: Any) -> Any:
    store_plain, size = _PLAIN_STORES[layout.label][0], _PLAIN[layout.label][2]

    def plain(layout: Any, row: Any, start: Any, values: Any) -> Any:
        store_plain(row + start * size, values)

    return plain


@overload(store_part)
def _store_part(layout: Any, row: Any, start: Any, values: Any, count: Any) -> Any:
    store_plain_part, size = _PLAIN_STORES[layout.label][1], _PLAIN[layout.label][2]

    def plain(layout: Any, row: Any, start: Any, values: Any, count: Any) -> Any:
        store_plain_part(row + start * size, values, count)

    return plain


@inlined
def store_values(layout: Any, row: int, start: int, width: int, values: Vector) -> None:
    """Write sixteen values of a row from ``start`` on, none from ``width`` on. Not for layouts with scales."""
    if start + LANES <= width:
        store(layout, row, start, values)
    else:
        store_part(layout, row, start, values, width - start)
