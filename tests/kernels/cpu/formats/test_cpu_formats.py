"""The layouts of the cpu kernels beside what they are layouts of."""

from __future__ import annotations

import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from elastikv.kernels.cpu.formats import CELLS, WEIGHTS
from elastikv.kernels.cpu.formats.layout import layout_of
from elastikv.memory.formats import FORMATS


def test_every_cell_format_has_a_layout() -> None:
    assert set(CELLS) == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dim", [1, 32, 40, 128])
def test_rows_of_cells_are_as_long_as_memory_makes_them(name: str, dim: int) -> None:
    sizes = [plane.row_bytes for plane in FORMATS[name].planes("k", 3, dim)]
    layout = CELLS[name]
    assert [3 * layout.row_bytes(dim), 3 * layout.scale_bytes(dim)] == [*sizes, 0][:2]


@pytest.mark.parametrize("kind", WEIGHTS)
def test_rows_of_packed_weights_are_as_long_as_the_file_has_them(kind: str) -> None:
    n_values, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind.upper()]]
    assert WEIGHTS[kind].row_bytes(6 * n_values) == 6 * n_bytes


def test_no_two_layouts_share_a_label() -> None:
    """numba would take one for the other."""
    layouts = [*CELLS.values(), *WEIGHTS.values()]
    assert all(layout_of(layout.label) is layout for layout in layouts)
