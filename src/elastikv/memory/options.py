"""What a user can choose about memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from elastikv.arguments import MOST, instance, whole_number
from elastikv.memory.base import CellType
from elastikv.memory.growth import parse_growth
from elastikv.memory.storage import StorageKind

RotateK = Callable[[int, torch.Tensor, int], torch.Tensor]
"""``rotate(layer, k, delta)``: K as if computed ``delta`` positions later.

layer: ordinal among the attention layers; k: float32 ``[n, n_kv_heads, head_dim]``; returns the same shape.
"""


@dataclass(frozen=True, slots=True)
class ResizeEvent:
    """One stream's capacity changed."""

    seq_id: int
    old_cells: int
    new_cells: int
    committed_bytes: int
    """Bytes that all memory commits after the resize."""
    seconds: float


@dataclass(frozen=True, slots=True)
class MemoryOptions:
    """n_ctx: cells a stream may ever have. dynamic=False commits all of them when a stream opens.

    growth: a policy as text (None: the storage's own default); initial: first capacity of a stream.
    rotate: what moves K to other positions (None: ``seq_add`` and removals in the middle return False).
    max_checkpoints: recurrent states kept per sequence. on_resize: called after every resize.
    Raises InvalidRequest.
    """

    n_ctx: int
    dynamic: bool = True
    growth: str | None = None
    initial: int = 256
    storage: StorageKind = "auto"
    k_type: CellType = "f16"
    v_type: CellType = "f16"
    device: str = "cpu"
    rotate: RotateK | None = None
    max_checkpoints: int = 4
    on_resize: Callable[[ResizeEvent], None] | None = None

    def __post_init__(self) -> None:
        whole_number("n_ctx", self.n_ctx, 1, MOST)
        whole_number("the initial capacity (kv_initial)", self.initial, 1, MOST)
        instance("kv_dynamic", self.dynamic, bool, "True or False")
        if self.growth is not None:
            parse_growth(self.growth)
