"""What the machine can read at most: the measure beside which kernels are held."""

from __future__ import annotations

import time

import numpy as np
from numba import prange

from elastikv.kernels.cpu.jit import kernel


def _read(values: np.ndarray, sums: np.ndarray) -> None:
    """Integers added up, by all threads."""
    for part in prange(len(sums)):
        size = len(values) // len(sums)
        sums[part] = values[part * size : (part + 1) * size].sum()


_read_kernel = kernel(_read)


class PlainRead:
    """Reads 256 MiB; it leaves the caches cold for what is measured next."""

    N_BYTES = 1 << 28

    def __init__(self) -> None:
        self._values = np.ones(self.N_BYTES // 8, dtype=np.int64)
        self._sums = np.zeros(64, dtype=np.int64)

    def rate(self) -> float:
        """Bytes per second of one read."""
        started = time.perf_counter()
        _read_kernel(self._values, self._sums)
        return self.N_BYTES / (time.perf_counter() - started)
