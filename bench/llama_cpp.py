"""llama.cpp as a runtime, over a cache of Qwen3.5-27B's size: memory, resizes beside decode calls, and the start.

    python -m bench.llama_cpp                       # 100, 6,000 and 80,000 tokens; needs about 14 GiB and 3 minutes
    python -m bench.llama_cpp --at 100,6000 --start 0

The model has that cache's geometry (16 layers, 4 KV heads of 256, 16-bit: 64 KiB a cell) and few weights. Tokens are
computed once, and then loaded as further sequences until there are as many as asked for: all share one context, as
sessions do. Each configuration runs in a process of its own. Bytes are resident ones, above what the process had with a
context of 256 cells that was closed again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bench.processes import peak_resident_bytes, reset_peak, resident_bytes, run_json
from bench.report import lengths, new_parser, write_json
from bench.shapes import add_shape_arguments, write_gguf, write_model
from elastikv import LLM
from elastikv.errors import format_bytes
from elastikv.memory.base import SavedSequence

N_ONCE = 2000
"""Tokens that are computed; further ones are loaded."""


@dataclass(frozen=True, slots=True)
class Sample:
    """With ``tokens`` tokens. Seconds are of a decode call of one token, and of all resizes since the last sample."""

    tokens: int
    cells: int
    committed: int
    compute: int
    resident: int
    peak_resident: int
    decode_seconds: float
    n_resizes: int
    resize_seconds: float


def open_llm(model: Path, n_ctx: int, *, dynamic: bool, n_threads: int) -> LLM:
    return LLM(
        model, runtime="llama.cpp", n_ctx=n_ctx, kv_dynamic=dynamic, kv_growth="double:1GiB", n_threads=n_threads
    )


def fill(llm: LLM, n_tokens: int) -> None:
    """Until all sequences together have so many tokens."""
    memory = llm.memory
    n_missing = n_tokens - llm.stats().used_cells
    if (n_first := min(N_ONCE - memory.n_tokens(0), n_missing)) > 0:
        llm.forward(torch.randint(0, 300, (n_first,)), 0)
        n_missing -= n_first
    while n_missing > 0:
        saved = memory.seq_tensors(0)["state"]
        header = SavedSequence(memory.n_tokens(0), 0, {"state": tuple(saved.shape)})
        seq_id = len(memory.seq_ids())
        memory.seq_load(seq_id, header, lambda tensors, saved=saved: tensors["state"].copy_(saved))  # type: ignore[misc]
        if memory.n_tokens(seq_id) > n_missing:
            memory.seq_rm(seq_id, n_missing)
        n_missing -= memory.n_tokens(seq_id)


def measure(model: Path, n_ctx: int, at: list[int], *, dynamic: bool, n_threads: int) -> list[Sample]:
    with open_llm(model, 256, dynamic=True, n_threads=n_threads) as llm:
        llm.forward([1, 2, 3])
    base = resident_bytes()
    samples: list[Sample] = []
    with open_llm(model, n_ctx, dynamic=dynamic, n_threads=n_threads) as llm:
        n_resizes, seconds = 0, 0.0
        for n_tokens in at:
            reset_peak()
            fill(llm, n_tokens - 1)
            started = time.perf_counter()
            llm.forward([1], len(llm.memory.seq_ids()) - 1)
            stats = llm.stats()
            samples.append(
                Sample(
                    tokens=stats.used_cells,
                    cells=stats.capacity_cells,
                    committed=stats.committed_bytes,
                    compute=stats.compute_bytes,
                    resident=resident_bytes() - base,
                    peak_resident=peak_resident_bytes() - base,
                    decode_seconds=time.perf_counter() - started,
                    n_resizes=stats.n_resizes - n_resizes,
                    resize_seconds=stats.resize_seconds - seconds,
                )
            )
            n_resizes, seconds = stats.n_resizes, stats.resize_seconds
    return samples


def resizes(model: Path, n_ctx: int, n_threads: int) -> list[tuple[int, int, float, float]]:
    """Cells before and after, seconds of the swap, and of the call of one token that follows; one sequence."""
    found = []
    with open_llm(model, n_ctx, dynamic=True, n_threads=n_threads) as llm:
        llm.forward(torch.randint(0, 300, (200,)))
        sizes = [n for n in (512, 1024, 2048, 4096, 8192, 16384) if n <= n_ctx]
        for n_cells in (*sizes, 256):
            before = llm.memory.max_capacity
            started = time.perf_counter()
            llm.memory.resize(n_cells)
            swapped = time.perf_counter()
            llm.forward([1])
            found.append((before, n_cells, swapped - started, time.perf_counter() - swapped))
            if n_cells < sizes[-1]:
                fill(llm, min(n_cells - 16, N_ONCE))
            else:
                llm.memory.seq_rm(0, 200)
    return found


def start(model: Path, n_ctx: int, *, dynamic: bool, n_threads: int) -> float:
    """Seconds until the logits of a first token."""
    started = time.perf_counter()
    with open_llm(model, n_ctx, dynamic=dynamic, n_threads=n_threads) as llm:
        llm.forward([1])
        return time.perf_counter() - started


def print_memory(name: str, samples: list[Sample]) -> None:
    print(f"\n{name}")
    titles = ("tokens", "cells", "cache", "buffers", "resident", "peak", "one token", "resizes", "in all")
    print(" ".join(title.rjust(10) for title in titles))
    for sample in samples:
        sizes = (sample.committed, sample.compute, sample.resident, sample.peak_resident)
        print(
            f"{sample.tokens:>10,} {sample.cells:>10,} "
            + " ".join(f"{format_bytes(n):>10}" for n in sizes)
            + f" {sample.decode_seconds * 1e3:>7.0f} ms {sample.n_resizes:>10} {sample.resize_seconds:>8.2f} s"
        )


def parse_args() -> argparse.Namespace:
    parser = new_parser(__doc__)
    add_shape_arguments(parser, "qwen3.5-27b-cache")
    parser.add_argument("--at", type=lengths, default="100,6000,80000", help="tokens")
    parser.add_argument("-c", "--ctx", type=int, default=131072)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--start", type=int, default=3, metavar="N", help="starts of each kind")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", choices=("dynamic", "static", "start", "static start"), help=argparse.SUPPRESS)
    return parser.parse_args()


def one(args: argparse.Namespace, model: Path) -> object:
    if args.one.endswith("start"):
        return start(model, args.ctx, dynamic=args.one == "start", n_threads=args.threads)
    is_dynamic = args.one == "dynamic"
    return [asdict(each) for each in measure(model, args.ctx, args.at, dynamic=is_dynamic, n_threads=args.threads)]


def main() -> None:
    args = parse_args()
    model = write_gguf(write_model(args.shape, args.models), "f16")
    if args.one:
        print(json.dumps(one(args, model)))
        return
    at = ",".join(map(str, args.at))
    document: dict[str, object] = {"arguments": vars(args)}
    for name in ("dynamic", "static"):
        found = run_json(
            "bench.llama_cpp",
            "--shape",
            args.shape,
            "--models",
            args.models,
            "-t",
            args.threads,
            "-c",
            args.ctx,
            "--at",
            at,
            "--one",
            name,
        )
        document[name] = found
        print_memory(f"{name}, -c {args.ctx}", [Sample(**each) for each in found])
    document["resizes"] = swaps = resizes(model, args.ctx, args.threads)
    print("\none sequence:  cells before -> after     swap   next token")
    for before, after, swap, decode in swaps:
        print(f"{before:>20,} -> {after:<8,} {swap * 1e3:>9.0f} ms {decode * 1e3:>6.0f} ms")
    kinds = {f"-c {args.ctx}": ("start", args.ctx), "-c 256": ("start", 256), "static": ("static start", args.ctx)}
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(args.start):
        for name, (kind, n_ctx) in kinds.items():
            flags = ("--shape", args.shape, "--models", args.models, "-t", args.threads, "-c", n_ctx)
            seconds[name].append(run_json("bench.llama_cpp", *flags, "--one", kind))
    document["start"] = seconds
    for name, each in seconds.items():
        if each:
            print(f"start to first token, {name}: median {statistics.median(each):.2f} s, least {min(each):.2f} s")
    write_json(args.json, document)


if __name__ == "__main__":
    main()
