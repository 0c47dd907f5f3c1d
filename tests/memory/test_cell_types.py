from __future__ import annotations

import pytest
import torch

from elastikv.errors import InvalidRequest
from elastikv.memory import KVLayer
from elastikv.memory.cell_types import cell_planes, load_rows, store_rows
from elastikv.memory.storage import bytes_per_row

LAYER = KVLayer(n_kv_heads=2, head_dim=40, head_dim_v=64)


def test_planes_of_16_bit_cells() -> None:
    k, v = cell_planes(LAYER, "f16", "bf16")
    assert (k.name, k.shape, k.dtype, k.row_bytes) == ("k", (2, 40), torch.float16, 160)
    assert (v.name, v.shape, v.dtype, v.row_bytes) == ("v", (2, 64), torch.bfloat16, 256)


def test_planes_of_q8_0_cells_have_a_scale_for_every_32_values() -> None:
    planes = cell_planes(LAYER, "q8_0", "q8_0")
    assert [(plane.name, plane.shape) for plane in planes] == [
        ("k", (2, 40)),
        ("v", (2, 64)),
        ("k_scale", (2, 2)),
        ("v_scale", (2, 2)),
    ]
    assert bytes_per_row([planes]) == 80 + 128 + 8 + 8


def test_types_can_be_mixed() -> None:
    assert [plane.name for plane in cell_planes(LAYER, "f32", "q8_0")] == ["k", "v", "v_scale"]


def test_unknown_type_is_named() -> None:
    with pytest.raises(InvalidRequest, match="q5_1"):
        cell_planes(LAYER, "q5_1", "f16")  # type: ignore[arg-type]


@pytest.mark.parametrize("dim", [32, 40, 64])
def test_q8_0_is_off_by_half_a_step_at_most(dim: int) -> None:
    values = torch.randn(7, 2, dim, generator=torch.Generator().manual_seed(1))
    values[3] = 0
    data = torch.empty(7, 2, dim, dtype=torch.int8)
    scale = torch.empty(7, 2, -(-dim // 32), dtype=torch.float16)
    store_rows(values, data, scale)
    step = scale.float().repeat_interleave(32, dim=-1)[..., :dim]
    # The scale is itself rounded to 11 bits, which moves the largest values by up to 127 * 2**-12 steps.
    assert ((load_rows(data, scale) - values).abs() <= step * (0.5 + 127 * 2**-11)).all()
    assert (load_rows(data, scale)[3] == 0).all()


def test_loaded_rows_are_the_callers_own() -> None:
    data = torch.ones(3, 2, 4)
    load_rows(data, None).zero_()
    assert (data == 1).all()
