"""How many cores the kernels and torch use."""

from __future__ import annotations

import numba
import torch


def set_threads(n: int) -> None:
    """Let numba and torch use ``n`` threads each; they run one after the other, never at once.

    Both run on the OpenMP library that torch brings, hence on the same worker threads, wherever
    numba's OpenMP layer is available.
    """
    torch.set_num_threads(n)
    numba.set_num_threads(min(n, numba.config.NUMBA_NUM_THREADS))
