"""How values lie in memory, as objects that kernels are compiled for.

A kernel takes a layout as an argument and calls its methods:

    values = layout.load(row, scales, 32)      # values 32..47 of the row at address ``row``

To numba each layout is a type of its own, so a kernel is compiled for each, with that layout's code in it. A layout
carries nothing else at run time; its methods are written as kernels are, and ``self`` in them is the layout.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

from numba import types
from numba.core.imputils import lower_constant
from numba.extending import NativeValue, models, overload_attribute, overload_method, register_model, unbox

from elastikv.kernels.cpu.jit import inlined, typed
from elastikv.kernels.cpu.simd.vector import LANES, Vector

_Method = TypeVar("_Method", bound=Callable[..., Any])


def tag_type(cls: type[types.Type]) -> type[types.Type]:
    """Decorates numba's type of a tag: a value that carries nothing but its type."""
    register_model(cls)(models.OpaqueModel)

    @typed(lower_constant(cls))
    def lower(context: Any, builder: Any, typ: types.Type, value: Any) -> Any:
        return context.get_dummy_value()

    @typed(unbox(cls))
    def unbox_tag(typ: types.Type, obj: Any, c: Any) -> NativeValue:
        return NativeValue(c.context.get_dummy_value())

    return cls


_BY_LABEL: dict[str, Tag] = {}


@tag_type
class LayoutType(types.Type):
    """numba's type of one layout, or another tag."""

    def __init__(self, label: str) -> None:
        self.label = label
        super().__init__(name=f"layout({label})")

    @property
    def layout(self) -> Any:
        """The layout, or other tag, that this is the type of."""
        return layout_of(self.label)


def layout_of(label: str) -> Any:
    """Find a layout, or another tag, by its label; KeyError if there is none."""
    return _BY_LABEL[label]


def compiled(method: _Method) -> _Method:
    """Decorates a method that kernels call, where it is first declared."""
    return _compiled(method, inline="never")


def compiled_inline(method: _Method) -> _Method:
    """Decorates a short one that numba is to put in the place of its calls, before it looks at loops."""
    return _compiled(method, inline="always")


def _compiled(method: _Method, inline: str) -> _Method:
    def choose(tag: LayoutType, *_: Any) -> Any:
        return getattr(type(tag.layout), method.__name__)

    choose.__signature__ = inspect.signature(method)  # type: ignore[attr-defined]
    # Implementations have the names of its parameters, but not always the annotations, which ``strict`` would compare.
    overload_method(LayoutType, method.__name__, inline=inline, strict=False)(choose)
    return method


def compiled_constant(name: str) -> None:
    """Let kernels read this attribute of layouts, as a constant."""

    @typed(overload_attribute(LayoutType, name, inline="always"))
    def choose(tag: Any) -> Any:
        value = getattr(tag.layout, name)

        def get(tag: Any) -> Any:
            return value

        return get


class Tag(ABC):
    """An object that kernels are compiled for: its methods that are ``compiled``. label: unlike any other's."""

    label: str

    def __init__(self) -> None:
        self._numba_type_ = LayoutType(self.label)
        _BY_LABEL[self.label] = self

    def __repr__(self) -> str:
        return f"<{self.label}>"


class Layout(Tag):
    """Rows of values, as they lie in memory.

    Addresses are in bytes; ``scales`` is the address of the scales of a row, where these lie apart from the values, and
    ignored by other layouts.
    """

    @compiled_inline
    @abstractmethod
    def row_bytes(self, width: int) -> int:
        """Bytes of ``width`` values, without scales that lie apart."""

    @compiled
    @abstractmethod
    def load(self, row: int, scales: int, start: int) -> Vector:
        """Values ``start .. start + 15`` of a row, as float32; ``start`` is a multiple of 16."""

    @compiled
    @abstractmethod
    def load_part(self, row: int, scales: int, start: int, count: int) -> Vector:
        """The row's last ``count < 16`` values, from ``start`` on; nothing behind them is read, other lanes are 0."""


@inlined
def load_values(layout: Any, row: int, scales: int, start: int, width: int) -> Vector:
    """Sixteen values of a row from ``start`` on, zeros from ``width`` on."""
    if start + LANES <= width:
        return layout.load(row, scales, start)
    return layout.load_part(row, scales, start, width - start)


@inlined
def store_values(layout: Any, row: int, start: int, width: int, values: Vector) -> None:
    """Write sixteen values of a row from ``start`` on, none from ``width`` on, to one of ``plain``'s layouts."""
    if start + LANES <= width:
        layout.store(row, start, values)
    else:
        layout.store_part(row, start, values, width - start)
