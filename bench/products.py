"""Products of packed weights with few and many rows of x, beside a loop of the instruction alone and torch.mm."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils

from elastikv.kernels.cpu import CpuKernels
from elastikv.kernels.cpu.jit import kernel
from elastikv.kernels.cpu.simd.byte_products import ByteProducts, I8x64
from elastikv.kernels.cpu.simd.features import has
from elastikv.kernels.cpu.simd.vector import I64, I32x16, operation, pointer, splat_value
from elastikv.kernels.weights import Weight

_CHAINS = 10 if has("avx512bw") else 4
"""Sums that do not wait for each other: latency times throughput, or as many as there are registers for."""

_STEPS = 1 << 20


@operation(types.void, types.intp, types.intp)
def _multiply_registers(builder: ir.IRBuilder, n_steps: ir.Value, out: ir.Value) -> None:
    """Nothing but products, of values that are in registers already. out: room for the sums, 64 bytes each."""
    products = ByteProducts(builder, highest=63)
    sums = [cgutils.alloca_once_value(builder, ir.Constant(I32x16, [chain] * 16)) for chain in range(_CHAINS)]
    with cgutils.for_range(builder, n_steps) as loop:
        x = builder.bitcast(splat_value(builder, loop.index, 8), I8x64)
        for chain, place in enumerate(sums):
            before, weights = builder.load(place), ir.Constant(I8x64, [chain + 1] * 64)
            builder.store(products.total(products.add(weights, x, None, before), before), place)
    for chain, place in enumerate(sums):
        address = builder.add(out, ir.Constant(I64, 64 * chain))
        builder.store(builder.load(place), pointer(builder, address), align=1)


@kernel
def _multiply_everywhere(n_threads: int, n_steps: int, out: int) -> None:
    for thread in prange(n_threads):
        _multiply_registers(n_steps, out + thread * 64 * _CHAINS)


@dataclass
class Rates:
    """Medians: seconds of the product; multiply-adds a second of it, of the instruction alone, of torch.mm."""

    seconds: float
    product: float
    peak: float
    torch: float


def measure_product(
    kernels: CpuKernels, weight: Weight, n: int, n_threads: int, rounds: int, evict: Callable[[], object]
) -> Rates:
    """All three take turns. evict: leaves the caches cold, as another layer's weights do."""
    n_out, n_in = weight.shape
    x, out, dense = torch.randn(n, n_in), torch.empty(n, n_out), torch.randn(n_out, n_in)
    sums = torch.empty(n_threads * 16 * _CHAINS, dtype=torch.int32)
    work = n * n_out * n_in
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "product": (lambda: kernels.linear(x, weight, None, out), work),
        "peak": (lambda: _multiply_everywhere(n_threads, _STEPS, sums.data_ptr()), n_threads * _STEPS * _CHAINS * 64),
        "torch": (lambda: torch.mm(x, dense.t(), out=out), work),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 1):
        for name, (call, _) in calls.items():
            evict()
            start = time.perf_counter()
            call()
            if round_ > 0:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return Rates(medians["product"], **{name: amount / medians[name] for name, (_, amount) in calls.items()})
