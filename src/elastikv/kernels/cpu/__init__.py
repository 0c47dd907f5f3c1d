"""Kernels for processors, compiled by numba. Importing this raises ImportError where numba is missing."""

from elastikv.kernels.cpu.backend import CpuKernels
from elastikv.kernels.cpu.threads import set_threads

__all__ = ["CpuKernels", "set_threads"]
