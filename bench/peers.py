"""elastikv, llama.cpp and transformers on the same random weights, alternating in one run.

    python -m bench.peers --shape qwen3-0.6b --precision q8_0 --depths 32,512,4096 --prompts 512 --rounds 3

Each side is a process of its own that loads its model once and then waits for orders, so that only one side
computes at a time. Contexts are filled by real prefill. llama.cpp comes from the `xllamacpp` package and is timed
by its own server's `timings`; transformers runs a plain loop over `model(...)` with a DynamicCache, in float32.

That llama.cpp is built for any AVX2 processor. One that is built for this machine, and ik_llama.cpp, take part as
they are (docs/benchmarks.md says how to build both):

    python -m bench.peers --sides elastikv --llama-bench llama.cpp=../llama.cpp/build/bin/llama-bench \\
        --llama-bench ik_llama.cpp=../ik_llama.cpp/build/bin/llama-bench

llama.cpp takes a quarter of an hour for a prompt of 16,384 tokens. With `--slots DIR` its context is saved once, and
restored for every other precision, whose cells are as many and as large:

    python -m bench.peers --precision q4_0 bf16 f32 --prompts "" --depths 16384 --slots /var/tmp/slots
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from bench.llama_bench import LlamaBench, named_binary
from bench.report import lengths, new_parser, pyplot, save_figure, write_json
from bench.shapes import PRECISIONS, add_shape_arguments, write_gguf, write_model
from bench.sides import MARGIN, SIDES, Worker

Rates = dict[str, dict[str, list[float]]]
"""Tokens per second by test and side, one a round."""


def start_sides(args: argparse.Namespace, precision: str, n_ctx: int, n_parallel: int) -> list[Worker | LlamaBench]:
    """transformers takes part in float32 and with one sequence."""
    chosen = PRECISIONS[precision]
    folder = write_model(args.shape, args.models, chosen.dtype)
    gguf = write_gguf(folder, chosen.gguf_type)
    paths = {"elastikv": folder if chosen.reads_folder else gguf, "llama.cpp": gguf, "transformers": folder}
    with_transformers = chosen.dtype == "float32" and n_parallel == 1
    names = [name for name in args.sides if name != "transformers" or with_transformers]
    if args.slots:
        args.slots.mkdir(parents=True, exist_ok=True)
    workers = [Worker(name, paths[name], args.slots, args.threads, n_ctx, n_parallel) for name in names]
    return [*workers, *(LlamaBench(name, binary, gguf, args.threads) for name, binary in args.llama_bench)]


def measure(args: argparse.Namespace, precision: str) -> Rates:
    """One sequence; sides alternate within a round."""
    workers = start_sides(args, precision, max([*args.depths, *args.prompts]) + MARGIN, 1)
    rates: Rates = {}
    try:
        for n in args.prompts:
            for round_ in range(args.rounds if n <= 1024 else 1):
                for worker in workers:
                    answer = worker.ask(op="prefill", n=n, salt=round_ + 1)
                    note(rates, precision, f"prefill {n}", worker, n, answer)
        for depth in args.depths:
            n = args.gen if depth < 8192 else max(4, args.gen // 8)
            for _ in range(args.rounds):
                for worker in workers:
                    # The last prompt measured may be this depth's: then it is still there and need not be computed.
                    answer = worker.ask(op="decode", n=n, depth=depth, salt=1 if depth > 1024 else 99)
                    note(rates, precision, f"decode @{depth}", worker, n, answer)
    finally:
        for worker in workers:
            worker.close()
    return rates


def measure_together(args: argparse.Namespace, precision: str) -> Rates:
    """Several sequences decoding at once: tokens per second of all of them."""
    depth = args.together_depth
    workers = start_sides(args, precision, depth + MARGIN, max(args.together))
    rates: Rates = {}
    try:
        for _ in range(args.rounds):
            for count in args.together:
                for worker in workers:
                    answer = worker.ask(op="decode", n=args.gen, depth=depth, salt=99, count=count)
                    note(rates, precision, f"{count} together @{depth}", worker, count * args.gen, answer)
    finally:
        for worker in workers:
            worker.close()
    return rates


def note(rates: Rates, precision: str, test: str, worker: Worker | LlamaBench, n: int, answer: dict[str, Any]) -> None:
    rate = n / answer["seconds"]
    rates.setdefault(test, {}).setdefault(worker.name, []).append(rate)
    resident = f"resident {answer['resident'] / 2**20:.0f} MiB"
    print(f"  {precision} {test} {worker.name}: {rate:.2f} tok/s, {resident}", file=sys.stderr, flush=True)


def print_table(precision: str, rates: Rates) -> None:
    sides = list(dict.fromkeys(side for by_side in rates.values() for side in by_side))
    print(f"\n{precision:6} {'test':>14} " + " ".join(f"{side:>14}" for side in sides) + "   elastikv / others")
    for test, by_side in rates.items():
        medians = {side: statistics.median(values) for side, values in by_side.items()}
        cells = " ".join(f"{medians[side]:14.2f}" if side in medians else f"{'':>14}" for side in sides)
        ours = medians.get("elastikv")
        ratios = ", ".join(f"{ours / m:.2f} x {s}" for s, m in medians.items() if s != "elastikv" and ours)
        print(f"{'':6} {test:>14} {cells}   {ratios}")


def plot(results: dict[str, Rates], path: Path) -> None:
    figure, axes = pyplot().subplots(1, len(results), figsize=(4 * len(results), 3.5), dpi=120, squeeze=False)
    for axis, (precision, rates) in zip(axes[0], results.items(), strict=True):
        lines: dict[str, list[tuple[int, float]]] = {}
        for test, by_side in rates.items():
            if test.startswith("decode @"):
                for side, values in by_side.items():
                    lines.setdefault(side, []).append((int(test.split("@")[1]), statistics.median(values)))
        for side, points in lines.items():
            axis.loglog(*zip(*sorted(points), strict=True), marker="o", label=side)
        axis.set(title=precision, xlabel="tokens in the cache", ylabel="decode, tok/s")
        axis.legend()
    save_figure(figure, path)


def parse_args() -> argparse.Namespace:
    parser = new_parser(__doc__)
    add_shape_arguments(parser, "qwen3-0.6b")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["q8_0"])
    parser.add_argument("--prompts", type=lengths, default=[512])
    parser.add_argument("--depths", type=lengths, default=[32, 512, 4096])
    parser.add_argument("--together", type=lengths, default=[], help="sequences decoding at once, e.g. 1,8")
    parser.add_argument("--together-depth", type=int, default=1024)
    parser.add_argument("--gen", type=int, default=32, help="tokens decoded a round (an eighth of it from 8192 on)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument(
        "--llama-bench",
        action="append",
        type=named_binary,
        default=[],
        metavar="NAME=PATH",
        help="another side; repeatable",
    )
    parser.add_argument("--slots", type=Path, metavar="DIR", help="where llama.cpp keeps long contexts")
    parser.add_argument("--json", type=Path, help="write all rates here")
    parser.add_argument("--plot", type=Path, help="write a picture here")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    results = {}
    for precision in args.precision:
        results[precision] = measure(args, precision) if args.depths or args.prompts else {}
        if args.together:
            results[precision] |= measure_together(args, precision)
        print_table(precision, results[precision])
        write_json(args.json, results)
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
