"""Caches of transformers' ``generate`` side by side: decode speed and peak memory by length of the context.

    python -m bench.transformers_cache --rounds 2 --json bench/results/transformers_cache.json

A random model with the shape of Qwen3-0.6B. Every measurement is a process of its own, so that peak resident memory is
one cache's alone; the caches take turns. The context is not computed: random keys and values are put into the
cache through its own ``update``, in pieces as a chunked prefill would. Then ``generate`` decodes greedily.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from bench.processes import peak_resident_bytes, reset_peak, resident_bytes, run_json
from bench.report import lengths, new_parser, write_json
from bench.shapes import QWEN3_0_6B

CACHES = ("dynamic", "static", "elastic-mmap", "elastic-copy")
FILL_CHUNK = 2048
N_WARMUP = 2
SHAPE = {name: value for name, value in QWEN3_0_6B.items() if name != "model_type"}


def main() -> None:
    args = parse_arguments()
    if args.measure:
        print(json.dumps(measure(args.measure, args.context, args)))
        return
    runs = [run(cache, context, args) for _ in range(args.rounds) for context in args.contexts for cache in CACHES]
    table = summarise(runs, args.contexts)
    print_table(table, args)
    write_json(args.json, {"arguments": vars(args), "shape": SHAPE, "runs": runs})


def parse_arguments() -> argparse.Namespace:
    parser = new_parser(__doc__)
    parser.add_argument("--contexts", type=lengths, default=[1024, 4096, 16384, 32768], help="with commas")
    parser.add_argument("--tokens", type=int, default=24, help="tokens to decode (default 24)")
    parser.add_argument("--rounds", type=int, default=2, help="how often every cache has its turn (default 2)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--n-ctx", type=int, default=32768 + 256, help="limit of ElasticCache, size of StaticCache")
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"], help="fewer, for a quick look")
    parser.add_argument("--json", type=Path, help="write all runs to this file")
    parser.add_argument("--measure", choices=CACHES, help=argparse.SUPPRESS)
    parser.add_argument("--context", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def run(cache: str, context: int, args: argparse.Namespace) -> dict[str, Any]:
    """One measurement in a process of its own."""
    flags = {"--measure": cache, "--context": context, "--tokens": args.tokens, "--threads": args.threads}
    flags |= {"--dtype": args.dtype, "--n-ctx": args.n_ctx, "--layers": args.layers}
    result: dict[str, Any] = run_json("bench.transformers_cache", *(part for flag in flags.items() for part in flag))
    print(
        f"{cache:>13} {context:>6}: {1 / result['seconds_per_token']:6.2f} tok/s, "
        f"peak {result['peak_bytes'] / 2**30:.2f} GiB, of it cache {result['cache_bytes'] / 2**30:.2f} GiB",
        file=sys.stderr,
        flush=True,
    )
    return result


def measure(name: str, context: int, args: argparse.Namespace) -> dict[str, Any]:
    """Fill a cache, decode, and look at the clock and at the process's memory."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = Qwen3Config(**{**SHAPE, "num_hidden_layers": args.layers}, eos_token_id=None, pad_token_id=0)
    dtype = getattr(torch, args.dtype)
    model = Qwen3ForCausalLM._from_config(config, dtype=dtype).eval()
    reset_peak()
    before = resident_bytes()
    cache = make_cache(name, config, args.n_ctx)
    fill(cache, config, context, dtype)
    watch = Stopwatch()
    input_ids = torch.zeros(1, context + 1, dtype=torch.long)
    output = model.generate(
        input_ids, past_key_values=cache, max_new_tokens=args.tokens, do_sample=False, streamer=watch
    )
    steps = watch.seconds[N_WARMUP:]
    peak = peak_resident_bytes()
    return {
        "cache": name,
        "context": context,
        "seconds_per_token": statistics.median(steps),
        "mean_seconds_per_token": statistics.fmean(steps),
        "model_bytes": before,
        "peak_bytes": peak,
        "cache_bytes": peak - before,
        "tokens": output[0, context + 1 :].tolist(),
    }


def make_cache(name: str, config: Any, n_ctx: int) -> Any:
    from transformers import DynamicCache, StaticCache

    from elastikv import ElasticCache

    if name == "dynamic":
        return DynamicCache(config=config)
    if name == "static":
        return StaticCache(config=config, max_cache_len=n_ctx)
    return ElasticCache(config, n_ctx=n_ctx, storage="mmap" if name == "elastic-mmap" else "copy")


def fill(cache: Any, config: Any, context: int, dtype: Any) -> None:
    """Random keys and values for ``context`` tokens, the same for every cache."""
    import torch

    generator = torch.Generator().manual_seed(1)
    for start in range(0, context, FILL_CHUNK):
        shape = (1, config.num_key_value_heads, min(FILL_CHUNK, context - start), config.head_dim)
        keys, values = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
        for layer in range(config.num_hidden_layers):
            cache.update(keys, values, layer)


class Stopwatch:
    """A streamer that notes how long each token took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._last: float | None = None

    def put(self, tokens: Any) -> None:
        now = time.perf_counter()
        if self._last is not None:
            self.seconds.append(now - self._last)
        self._last = now

    def end(self) -> None: ...


def summarise(runs: list[dict[str, Any]], contexts: list[int]) -> dict[int, dict[str, tuple[float, int, int]]]:
    """By context and cache: best tokens a second of all rounds, peak bytes, bytes of the cache alone."""
    table: dict[int, dict[str, tuple[float, int, int]]] = {}
    for context in contexts:
        for cache in CACHES:
            mine = [each for each in runs if (each["context"], each["cache"]) == (context, cache)]
            speed = 1 / min(each["seconds_per_token"] for each in mine)
            peaks = max(each["peak_bytes"] for each in mine), max(each["cache_bytes"] for each in mine)
            table.setdefault(context, {})[cache] = (speed, *peaks)
    return table


def print_table(table: dict[int, dict[str, tuple[float, int, int]]], args: argparse.Namespace) -> None:
    print(f"Qwen3-0.6B's shape, {args.layers} layers, {args.dtype}, {args.threads} threads, n_ctx {args.n_ctx}")
    print("decode tok/s (best round) and peak resident GiB (of it, grown after the model was loaded)\n")
    print(f"{'context':>8} " + " ".join(f"{cache:>22}" for cache in CACHES))
    for context, row in table.items():
        cells = [
            f"{speed:7.2f}  {peak / 2**30:5.2f} ({own / 2**30:5.2f})" for speed, peak, own in (row[c] for c in CACHES)
        ]
        print(f"{context:>8} " + " ".join(f"{cell:>22}" for cell in cells))


if __name__ == "__main__":
    main()
