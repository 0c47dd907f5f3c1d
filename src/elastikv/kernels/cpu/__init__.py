"""Kernels for processors, compiled by numba. Importing this raises ImportError where they cannot run."""

from elastikv.kernels.cpu.simd.features import require_halves

require_halves()

from elastikv.kernels.cpu.backend import CpuKernels  # noqa: E402
from elastikv.kernels.cpu.threads import set_threads  # noqa: E402

__all__ = ["CpuKernels", "set_threads"]
