"""Where the milliseconds of a decode step go, beside the time that reading weights and cells must take.

    python -m bench.step_profile -m model.gguf --depths 32,4096

A step as users have it is timed first, most of its layers one compiled call each. Then every kernel is called and
timed on its own; "rest" is Python and torch between the calls, most of which the first way saves. The floor is the
bytes of all weights and of the cells, at the machine's plain read rate, measured in between.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.bandwidth import PlainRead
from bench.decoding import append, tokens
from bench.report import lengths, new_parser
from bench.shapes import weight_bytes
from elastikv import LLM
from elastikv.kernels.composed import Attention, DeltaNet, Mlp
from elastikv.kernels.cpu.backend import CpuKernels
from elastikv.kernels.cpu.fused import FusedAttention, FusedDeltaNet, FusedMlp
from elastikv.kernels.cpu.matmul.linear import LinearKernel

KERNELS = (
    "attention", "rope_store", "rms_norm", "add_rms_norm", "silu_mul", "gated_rms_norm", "sigmoid_mul", "causal_conv",
    "delta_gates", "gated_delta_rule",
)  # fmt: skip


class Clock:
    """Seconds spent in each kind of call; asleep until ``running``."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
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
    """Kernels tell the time once ``running``; layers, inside whose one call nothing can be timed, are then composed."""
    for layer, base in ((FusedAttention, Attention), (FusedDeltaNet, DeltaNet), (FusedMlp, Mlp)):
        whole, composed = layer.__call__, base.__call__
        layer.__call__ = lambda *args, whole=whole, composed=composed: (  # type: ignore[method-assign]
            (composed if clock.running else whole)(*args)
        )
    for kernel in KERNELS:
        setattr(CpuKernels, kernel, clock.timed(getattr(CpuKernels, kernel), lambda *_, kernel=kernel: kernel))
    LinearKernel.__call__ = clock.timed(  # type: ignore[method-assign]
        LinearKernel.__call__, lambda _self, _x, weight, *_: f"linear {weight.shape[0]} x {weight.shape[1]}"
    )


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("-m", "--model", type=Path, required=True)
    parser.add_argument("--depths", type=lengths, default=[32, 4096])
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("-t", "--threads", type=int, default=2)
    args = parser.parse_args()
    depths = sorted(args.depths)
    clock = Clock()
    install(clock)
    read = PlainRead()
    with LLM(args.model, n_ctx=depths[-1] + 4 * args.steps, n_threads=args.threads, kv_budget="none") as llm:
        llm.engine.warm_up()
        for depth in depths:
            llm.memory.clear()
            append(llm, tokens(depth))
            profile(llm, clock, args.steps, depth, weight_bytes(args.model), read)


def profile(llm: LLM, clock: Clock, n_steps: int, depth: int, weights: int, read: PlainRead) -> None:
    def step() -> float:
        started = time.perf_counter()
        append(llm, [11])
        return time.perf_counter() - started

    for _ in range(4):
        step()
    plain = [step() for _ in range(n_steps)]
    rate = statistics.median(read.rate() for _ in range(5))
    clock.running = True
    step()  # what only compiled layers have called so far is compiled now
    clock.seconds.clear()
    clock.calls.clear()
    total = sum(step() for _ in range(n_steps))
    clock.running = False
    cells = llm.memory.stats().committed_bytes
    floor = (weights + cells) / rate
    step_ms = statistics.median(plain) * 1e3
    print(f"\ndepth {depth}: {step_ms:.1f} ms a step (median of {n_steps}); kernel by kernel, by mean:")
    for label, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        print(f"  {label:28} {seconds / n_steps * 1e3:8.2f} ms  {clock.calls[label] / n_steps:5.0f} calls")
    print(f"  {'rest':28} {(total - sum(clock.seconds.values())) / n_steps * 1e3:8.2f} ms")
    print(
        f"floor: {weights / 2**20:.0f} MiB of weights and {cells / 2**20:.0f} MiB of cells at {rate / 1e9:.1f} GB/s: "
        f"{floor * 1e3:.1f} ms; the step takes {step_ms / floor / 1e3:.2f} times that"
    )


if __name__ == "__main__":
    main()
