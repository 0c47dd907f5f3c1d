"""Memory for weights: mapped apart from the heap, in huge pages where the system has them.

Loading makes and drops many temporaries. On the same heap as the weights they would leave holes that the process
keeps; and reading gigabytes per token is faster through huge pages.
"""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress

import torch

_SMALLEST_MAPPING = 1 << 16


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An uninitialised tensor. On a processor it owns its memory, which goes back to the system with it."""
    n_bytes = torch.Size(shape).numel() * dtype.itemsize
    if n_bytes < _SMALLEST_MAPPING or device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    mapping = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError, AttributeError):  # a wish, not a need
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapping, dtype=dtype).view(shape)


def trim_heap() -> None:
    """Give what temporaries left on the heap back to the system, where its allocator (glibc) can do that."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
