"""Addresses of rows that are read side by side, and of what comes after them."""

from __future__ import annotations

from typing import Any

from elastikv.kernels.cpu.jit import inlined
from elastikv.kernels.cpu.simd.memory import prefetch_l2


@inlined
def four_rows(base: int, stride: int, row: int, last: int) -> tuple[int, int, int, int]:
    """Addresses of four rows from ``row`` on, ``stride`` bytes apart; those behind ``last`` repeat it."""
    return (
        base + min(row, last) * stride,
        base + min(row + 1, last) * stride,
        base + min(row + 2, last) * stride,
        base + min(row + 3, last) * stride,
    )


@inlined
def offset_rows(addresses: Any, offset: int) -> tuple[int, int, int, int]:
    """Four addresses, each ``offset`` bytes further."""
    return (addresses[0] + offset, addresses[1] + offset, addresses[2] + offset, addresses[3] + offset)


@inlined
def prefetch_bytes(address: int, n_bytes: int) -> None:
    """Fetch ``n_bytes`` from an address on, which need not be valid, to the second cache.

    Call it in the order of memory, so that the processor's own prefetching joins in.
    """
    for line in range(0, n_bytes, 64):
        prefetch_l2(address + line)
