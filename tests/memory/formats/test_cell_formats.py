from __future__ import annotations

import pytest
import torch

from elastikv.cli import options
from elastikv.errors import InvalidRequest
from elastikv.memory import Budget, KVCache, KVLayer, MemoryOptions
from elastikv.memory.formats import FORMATS, CellFormat, CellTensor, cell_format
from elastikv.memory.formats.plain import BF16, F16, F32
from elastikv.memory.formats.q8_0 import Q8_0

LAYER = KVLayer(n_kv_heads=2, head_dim=40, head_dim_v=64)


def open_cells(cell_format: CellFormat, dim: int, n: int = 7) -> CellTensor:
    """Cells whose planes hold what no row has."""
    planes = cell_format.planes("k", 2, dim)
    return CellTensor(cell_format, 2, dim, tuple(torch.full((n, *p.shape), 77, dtype=p.dtype) for p in planes))


def test_planes_of_16_bit_cells() -> None:
    k, v = LAYER.planes(F16, BF16)
    assert (k.name, k.shape, k.dtype, k.row_bytes) == ("k", (2, 40), torch.float16, 160)
    assert (v.name, v.shape, v.dtype, v.row_bytes) == ("v", (2, 64), torch.bfloat16, 256)


def test_planes_of_q8_0_cells_have_a_scale_for_every_32_values() -> None:
    assert [(plane.name, plane.shape) for plane in LAYER.planes(Q8_0, Q8_0)] == [
        ("k", (2, 40)),
        ("v", (2, 64)),
        ("k_scale", (2, 2)),
        ("v_scale", (2, 2)),
    ]
    assert LAYER.n_bytes(Q8_0, Q8_0) == 80 + 128 + 8 + 8


def test_formats_can_be_mixed() -> None:
    assert [plane.name for plane in LAYER.planes(F32, Q8_0)] == ["k", "v", "v_scale"]
    cache = KVCache([LAYER], MemoryOptions(n_ctx=16, k_type="bf16", v_type="q8_0"), Budget.parse("none"))
    assert (cache.k_format, cache.v_format) == (BF16, Q8_0)
    assert cache.bytes_per_cell == LAYER.n_bytes(BF16, Q8_0)
    cache.resize(3, 0)
    cells = cache.cells(0, 0)
    assert (cells.k.format, cells.k.n_heads, cells.k.dim) == (BF16, 2, 40)
    assert (cells.v.format, cells.v.n_heads, cells.v.dim) == (Q8_0, 2, 64)
    cache.close()


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(InvalidRequest, match="q5_1"):
        cell_format("q5_1")
    with pytest.raises(InvalidRequest, match="q5_1"):
        KVCache([LAYER], MemoryOptions(n_ctx=16, k_type="q5_1"), Budget.parse("none"))


def test_the_command_line_offers_every_format() -> None:
    """It keeps the names itself: ``--help`` must not wait for torch."""
    assert tuple(FORMATS) == options.CELL_TYPES


@pytest.mark.parametrize("dim", [32, 40, 64])
def test_q8_0_is_off_by_half_a_step_at_most(dim: int) -> None:
    values = torch.randn(7, 2, dim, generator=torch.Generator().manual_seed(1))
    values[3] = 0
    cells = open_cells(Q8_0, dim)
    cells.store(slice(0, 7), values)
    step = cells.planes[1].float().repeat_interleave(32, dim=-1)[..., :dim]
    # The scale is itself rounded to 11 bits, which moves the largest values by up to 127 * 2**-12 steps.
    loaded = cells.load(slice(0, 7))
    assert ((loaded - values).abs() <= step * (0.5 + 127 * 2**-11)).all()
    assert (loaded[3] == 0).all()


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_written_and_read_where_they_are_asked_for(name: str) -> None:
    cells, values = open_cells(FORMATS[name], 40), torch.randint(-127, 128, (3, 2, 40)).float()
    values[..., ::32] = 127  # q8_0's steps are 1 then
    cells.store(slice(2, 5), values.bfloat16())  # of any floating-point type
    assert torch.equal(cells.load(slice(2, 5)), values)
    assert torch.equal(cells.view(slice(3, 4), torch.float16), values[1:2].half())
    assert all((plane[:2] == 77).all() and (plane[5:] == 77).all() for plane in cells.planes)


@pytest.mark.parametrize("name", FORMATS)
def test_loaded_rows_are_the_callers_own(name: str) -> None:
    cells = open_cells(FORMATS[name], 40)
    cells.store(slice(0, 7), torch.ones(7, 2, 40))
    cells.load(slice(0, 7)).zero_()
    assert torch.allclose(cells.load(slice(0, 7)), torch.ones(7, 2, 40), atol=1e-3)


def test_viewed_rows_are_the_cells_where_these_hold_the_type() -> None:
    cells = open_cells(F16, 40)
    assert cells.view(slice(1, 3), torch.float16).data_ptr() == cells.planes[0][1].data_ptr()
    assert cells.view(slice(1, 3), torch.bfloat16).dtype == torch.bfloat16
