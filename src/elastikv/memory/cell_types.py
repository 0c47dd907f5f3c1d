"""How K and V lie in cells, per cell type, and how rows are read and written as float32.

The kernels do their own, faster, quantising while they store; this is for what moves cells:
context shifts and tests. Both follow one rule for q8_0 (ggml's): 32 values share a float16 scale
``d = max|x| / 127`` and are stored as ``round(x / d)``.
"""

from __future__ import annotations

import torch

from elastikv.errors import InvalidRequest
from elastikv.memory.base import CellType, KVLayer
from elastikv.memory.storage.planes import LayerPlanes, Plane

Q8_0_BLOCK = 32

_DTYPES: dict[CellType, torch.dtype] = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "q8_0": torch.int8,
}


def cell_planes(layer: KVLayer, k_type: CellType, v_type: CellType) -> LayerPlanes:
    """The planes of a layer: ``k``, ``v``, and for q8_0 ``k_scale``, ``v_scale``. Raises InvalidRequest."""
    data, scales = [], []
    for name, head_dim, cell_type in (("k", layer.head_dim, k_type), ("v", layer.head_dim_v, v_type)):
        if cell_type not in _DTYPES:
            raise InvalidRequest(f"{cell_type!r} is not a cell type; choose one of {', '.join(_DTYPES)}")
        data.append(Plane(name, (layer.n_kv_heads, head_dim), _DTYPES[cell_type]))
        if cell_type == "q8_0":
            n_blocks = -(-head_dim // Q8_0_BLOCK)
            scales.append(Plane(f"{name}_scale", (layer.n_kv_heads, n_blocks), torch.float16))
    return (*data, *scales)


def load_rows(data: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """``[n, heads, dim]`` cells as a new float32 tensor. ``scale``: ``[n, heads, blocks]`` for q8_0, else None."""
    values = data.to(torch.float32, copy=True)
    return values if scale is None else values * _spread(scale.to(torch.float32), data.shape[-1])


def store_rows(values: torch.Tensor, data: torch.Tensor, scale: torch.Tensor | None) -> None:
    """Write float32 ``[n, heads, dim]`` into cells."""
    if scale is None:
        data.copy_(values)
        return
    dim = values.shape[-1]
    padded = torch.nn.functional.pad(values, (0, -dim % Q8_0_BLOCK))
    step = padded.unflatten(-1, (-1, Q8_0_BLOCK)).abs().amax(-1) / 127
    inverse = torch.where(step > 0, 1 / step, torch.zeros(()))
    data.copy_(torch.round(values * _spread(inverse, dim)))
    scale.copy_(step)


def _spread(per_block: torch.Tensor, dim: int) -> torch.Tensor:
    return per_block.repeat_interleave(Q8_0_BLOCK, dim=-1)[..., :dim]
