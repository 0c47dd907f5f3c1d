"""Resident memory of real streams beside what the cache says it has committed.

    python -m bench.memory                          # 100, 6,000 and 80,000 tokens; needs about 10 GiB
    python -m bench.memory --plot docs/memory.png   # and a picture of memory over tokens

The streams have the geometry of Qwen3.5-27B (16 attention layers, 4 KV heads of 256, 16-bit: 64 KiB
a cell) and every cell is written. Each configuration runs in a process of its own, one after the other.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from bench.processes import peak_resident_bytes, resident_bytes, run_json
from bench.report import lengths, new_parser, pyplot, save_figure, write_json
from elastikv.batch import Batch, SeqTokens, UBatch
from elastikv.errors import format_bytes
from elastikv.memory import Budget, KVCache, KVLayer, MemoryOptions

QWEN3_5_27B = [KVLayer(n_kv_heads=4, head_dim=256, head_dim_v=256)] * 16
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Configuration:
    name: str
    storage: Literal["mmap", "copy"]
    growth: str
    dynamic: bool = True


def configurations(growth: str) -> list[Configuration]:
    return [
        Configuration("mmap", "mmap", growth),
        Configuration("copy", "copy", growth),
        Configuration("static (--no-kv-dynamic)", "mmap", growth, dynamic=False),
    ]


@dataclass(frozen=True, slots=True)
class Sample:
    """After ``tokens`` tokens. Bytes are above what the process had before the memory was made."""

    tokens: int
    cells: int
    committed: int
    resident: int
    peak_committed: int
    peak_resident: int
    resize_seconds: float


def measure(configuration: Configuration, token_counts: list[int], n_ctx: int) -> list[Sample]:
    """Fill one stream to each of the token counts and look."""
    torch.set_num_threads(1)
    warm_up = _open(configuration, 256)
    _append(warm_up, 16)
    warm_up.close()
    base = resident_bytes()
    cache = _open(configuration, n_ctx)
    samples = []
    for n_tokens in token_counts:
        while (n_missing := n_tokens - cache.n_cells(0)) > 0:
            _append(cache, min(n_missing, 2048))
        stats = cache.stats()
        samples.append(
            Sample(
                tokens=n_tokens,
                cells=stats.capacity_cells,
                committed=stats.committed_bytes,
                resident=resident_bytes() - base,
                peak_committed=stats.peak_committed_bytes,
                peak_resident=peak_resident_bytes() - base,
                resize_seconds=stats.resize_seconds,
            )
        )
    return samples


def _open(configuration: Configuration, n_ctx: int) -> KVCache:
    options = MemoryOptions(
        n_ctx=n_ctx,
        dynamic=configuration.dynamic,
        growth=configuration.growth,
        storage=configuration.storage,
    )
    return KVCache(QWEN3_5_27B, options, Budget.parse("none"))


def _append(cache: KVCache, n_tokens: int) -> None:
    for ubatch in cache.init_batch(Batch([SeqTokens(0, bytes(n_tokens))]), 512):
        cache.apply(ubatch)
        _write_cells(cache, ubatch)
    cache.commit()


def _write_cells(cache: KVCache, ubatch: UBatch) -> None:
    for span in ubatch.spans:
        for layer in range(len(cache.layers)):
            cells = cache.cells(layer, span.seq_id)
            cells.k.planes[0][span.pos : span.end] = 1
            cells.v.planes[0][span.pos : span.end] = 2


def in_own_process(configuration: Configuration, token_counts: list[int], n_ctx: int) -> list[Sample]:
    task = json.dumps({"configuration": asdict(configuration), "token_counts": token_counts, "n_ctx": n_ctx})
    return [Sample(**sample) for sample in run_json("bench.memory", "--task", task)]


def run_task(task: str) -> None:
    fields = json.loads(task)
    samples = measure(Configuration(**fields["configuration"]), fields["token_counts"], fields["n_ctx"])
    print(json.dumps([asdict(sample) for sample in samples]))


def print_table(results: dict[str, list[Sample]]) -> None:
    columns = ("tokens", "cells", "committed", "resident", "off by", "peak resident", "in resizes")
    print(f"{'':26}" + "".join(f"{column:>15}" for column in columns))
    for name, samples in results.items():
        for sample in samples:
            off = 100 * (sample.resident - sample.committed) / sample.committed
            cells = (f"{sample.tokens:,}", f"{sample.cells:,}", format_bytes(sample.committed))
            measured = (format_bytes(sample.resident), f"{off:+.2f} %", format_bytes(sample.peak_resident))
            print(
                f"{name:26}" + "".join(f"{cell:>15}" for cell in (*cells, *measured, f"{sample.resize_seconds:.2f} s"))
            )


def plot(path: Path, n_ctx: int) -> None:
    """Measured resident memory while one stream fills up."""
    token_counts = [*range(100, 2000, 100), *range(2000, 80_001, 500)]
    shown = [
        Configuration("static: all of -c at the start", "mmap", "step:256", dynamic=False),
        Configuration("copy, double:1GiB", "copy", "double:1GiB"),
        Configuration("mmap, step:256", "mmap", "step:256"),
    ]
    figure, axes = pyplot().subplots(figsize=(9, 4.5), dpi=120)
    for configuration, colour in zip(shown, ("#b0413e", "#3a6ea5", "#2e8b57"), strict=True):
        samples = in_own_process(configuration, token_counts, n_ctx)
        tokens = [sample.tokens for sample in samples]
        axes.plot(tokens, [sample.resident / GIB for sample in samples], label=configuration.name, color=colour)
    used = [n_tokens * 65_536 / GIB for n_tokens in token_counts]
    axes.plot(token_counts, used, ":", label="cells in use", color="#555555")
    axes.set_xlabel("tokens in the context")
    axes.set_ylabel("resident memory of the KV cache, GiB")
    axes.set_title(f"Qwen3.5-27B's KV cache, 16-bit, -c {n_ctx}")
    axes.set_xlim(0, token_counts[-1])
    axes.set_ylim(0, None)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save_figure(figure, path)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--at", type=lengths, default=[100, 6000, 80000], help="token counts, ascending")
    parser.add_argument("-c", "--ctx-size", type=int, default=131_072)
    parser.add_argument("--kv-growth", default="double:1GiB")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to a file")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw memory over tokens instead")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        run_task(args.task)
    elif args.plot:
        plot(args.plot, args.ctx_size)
    else:
        results = {each.name: in_own_process(each, args.at, args.ctx_size) for each in configurations(args.kv_growth)}
        print_table(results)
        write_json(args.json, {name: [asdict(sample) for sample in samples] for name, samples in results.items()})


if __name__ == "__main__":
    main()
