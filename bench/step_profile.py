"""Where the milliseconds of a decode step go, beside the time that reading weights and cells must take.

    python bench/step_profile.py -m model.gguf --depths 32,4096

A step as users have it is timed first, most of its layers one compiled call each. Then every kernel is called and
timed on its own; "rest" is Python and torch between the calls, most of which the first way saves. The floor is the
bytes of all weights and of the cells, at the machine's plain read rate, measured in between.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from elastikv import LLM
from elastikv.batch import Batch, SeqTokens
from elastikv.kernels.cpu.backend import CpuKernels
from elastikv.kernels.cpu.bound import BoundAttention, BoundDeltaNet, BoundMlp
from elastikv.kernels.cpu.matmul.linear import LinearKernel

sys.path.insert(0, str(Path(__file__).parent))
from kernels import READ_BYTES, read_all
from peers import tokens
from resident import weight_files

KERNELS = (
    "attention", "rope_store", "rms_norm", "add_rms_norm", "silu_mul", "gated_rms_norm", "sigmoid_mul", "causal_conv",
    "delta_gates", "gated_delta_rule",
)  # fmt: skip


class Clock:
    """Seconds spent in each kind of call; asleep until ``running``."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.running = False

    def timed(self, function: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.running:
                return function(*args, **kwargs)
            started = time.perf_counter()
            result = function(*args, **kwargs)
            label = name(*args)
            self.seconds[label] += time.perf_counter() - started
            self.calls[label] += 1
            return result

        return call


def install(clock: Clock) -> None:
    """Kernels tell the time once ``running``; whole layers, inside which nothing can be timed, then step back."""
    for bound in (BoundAttention, BoundDeltaNet, BoundMlp):
        whole = bound.__call__
        bound.__call__ = lambda *args, whole=whole: not clock.running and whole(*args)  # type: ignore[method-assign]
    for kernel in KERNELS:
        setattr(CpuKernels, kernel, clock.timed(getattr(CpuKernels, kernel), lambda *_, kernel=kernel: kernel))
    LinearKernel.__call__ = clock.timed(  # type: ignore[method-assign]
        LinearKernel.__call__, lambda _self, _x, weight, *_: f"linear {weight.shape[0]} x {weight.shape[1]}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", type=Path, required=True)
    parser.add_argument("--depths", default="32,4096")
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("-t", "--threads", type=int, default=2)
    args = parser.parse_args()
    depths = sorted(int(text) for text in args.depths.split(","))
    clock = Clock()
    install(clock)
    memory, sums = np.ones(READ_BYTES // 8, dtype=np.int64), np.zeros(64, dtype=np.int64)
    with LLM(args.model, n_ctx=depths[-1] + 4 * args.steps, n_threads=args.threads, kv_budget="none") as llm:
        weights = sum(path.stat().st_size for path in weight_files(args.model))
        for depth in depths:
            llm.memory.clear()
            for start in range(0, depth, llm.n_batch):
                llm.engine.decode(Batch([SeqTokens(0, tokens(depth, 1)[start : start + llm.n_batch])]))
            profile(llm, clock, args.steps, depth, weights, lambda: read_all(memory, sums))


def profile(llm: LLM, clock: Clock, n_steps: int, depth: int, weights: int, read: Callable[[], object]) -> None:
    def step() -> float:
        started = time.perf_counter()
        llm.engine.decode(Batch([SeqTokens(0, [11])]))
        return time.perf_counter() - started

    for _ in range(4):
        step()
    plain, rates = [], []
    for _ in range(n_steps):
        plain.append(step())
    for _ in range(5):
        started = time.perf_counter()
        read()
        rates.append(READ_BYTES / (time.perf_counter() - started))
    clock.running = True
    step()  # what only compiled layers have called so far is compiled now
    clock.seconds.clear()
    clock.calls.clear()
    total = sum(step() for _ in range(n_steps))
    clock.running = False
    rate = statistics.median(rates)
    cells = llm.memory.stats().committed_bytes
    floor = (weights + cells) / rate
    step_ms = statistics.median(plain) * 1e3
    print(f"\ndepth {depth}: {step_ms:.1f} ms a step (median of {n_steps}); kernel by kernel, by mean:")
    for label, seconds in clock.seconds.most_common():
        print(f"  {label:28} {seconds / n_steps * 1e3:8.2f} ms  {clock.calls[label] / n_steps:5.0f} calls")
    print(f"  {'rest':28} {(total - sum(clock.seconds.values())) / n_steps * 1e3:8.2f} ms")
    print(
        f"floor: {weights / 2**20:.0f} MiB of weights and {cells / 2**20:.0f} MiB of cells at {rate / 1e9:.1f} GB/s: "
        f"{floor * 1e3:.1f} ms; the step takes {step_ms / floor / 1e3:.2f} times that"
    )


if __name__ == "__main__":
    main()
