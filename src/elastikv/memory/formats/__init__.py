"""How K and V lie in cells: an object per cell format, found here by its name.

To add one, write its module and name it in ``FORMATS``. The CPU backend has the other half in ``kernels/cpu/formats``.
"""

from __future__ import annotations

from elastikv.errors import InvalidRequest
from elastikv.memory.formats.base import CellFormat, CellTensor
from elastikv.memory.formats.plain import BF16, F16, F32
from elastikv.memory.formats.q8_0 import Q8_0

FORMATS: dict[str, CellFormat] = {each.name: each for each in (F32, F16, BF16, Q8_0)}


def cell_format(name: str) -> CellFormat:
    """The format of this name. Raises InvalidRequest."""
    try:
        return FORMATS[name]
    except KeyError:
        raise InvalidRequest(f"{name!r} is not a cell type; choose one of {', '.join(FORMATS)}") from None


__all__ = ["FORMATS", "CellFormat", "CellTensor", "cell_format"]
