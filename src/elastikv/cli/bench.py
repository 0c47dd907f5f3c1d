"""``elastikv bench``: tokens per second of prefill (pp) and decode (tg) at several depths, as llama-bench does."""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from elastikv.cli.options import add_model_arguments, llm_from_args
from elastikv.errors import InvalidRequest, format_bytes

if TYPE_CHECKING:
    from elastikv import LLM

SEQ_ID = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    bench = parser.add_argument_group("bench")
    bench.add_argument("-p", "--n-prompt", default="512", metavar="N,...", help="prompt lengths to prefill")
    bench.add_argument("-n", "--n-gen", default="64", metavar="N,...", help="tokens to decode one by one")
    bench.add_argument("-d", "--depth", default="0", metavar="N,...", help="tokens that the cache holds before")
    bench.add_argument("-r", "--repetitions", type=int, default=3, metavar="N")
    bench.add_argument(
        "--list-kernels", action="store_true", help="print which instructions compute what on this processor, and end"
    )
    bench.add_argument("--json", action="store_true", help="print JSON")
    bench.add_argument("--csv", action="store_true", help="print CSV")
    add_model_arguments(parser)


@dataclass(frozen=True, slots=True)
class Result:
    """One row: tokens per second over the repetitions, and what the cache held at the end."""

    test: str
    depth: int
    n_tokens: int
    mean: float
    sd: float
    committed_bytes: int


def run(args: argparse.Namespace) -> int:
    """Measure and print a table, JSON or CSV. Returns the exit status."""
    if args.list_kernels:
        return _list_kernels(args)
    prompts, gens, depths = (_lengths(name, getattr(args, name)) for name in ("n_prompt", "n_gen", "depth"))
    if not any([*prompts, *gens]):
        raise InvalidRequest("there is nothing to measure: give -p or -n some tokens")
    if args.repetitions < 1:
        raise InvalidRequest(f"-r must be at least 1, got {args.repetitions}")
    with llm_from_args(args) as llm:
        longest = max(depths) + max([*prompts, *gens])
        if longest > llm.n_ctx:
            raise InvalidRequest(f"the longest test needs {longest} cells but -c is {llm.n_ctx}; raise -c")
        results = measure(llm, prompts, gens, depths, args.repetitions)
        if args.json:
            print(json.dumps([asdict(result) for result in results], indent=2))
        elif args.csv:
            writer = csv.DictWriter(sys.stdout, Result.__slots__)
            writer.writeheader()
            writer.writerows(asdict(result) for result in results)
        else:
            _print_table(llm, results)
    return 0


def _list_kernels(args: argparse.Namespace) -> int:
    from elastikv.kernels import select_kernels

    if select_kernels(args.kernels, args.device, args.attention_precision).name != "cpu":
        print("plain torch computes everything")
        return 0
    from elastikv.kernels.cpu import report

    print("processor:", " ".join(report.processor_features()))
    for operation, instructions in report.instructions(args.attention_precision).items():
        print(f"{operation:<42} {instructions}")
    return 0


def measure(llm: LLM, prompts: list[int], gens: list[int], depths: list[int], repetitions: int) -> Iterator[Result]:
    """Every length at every depth; the context is filled once per depth, by real prefill."""
    _warm_up(llm)
    for depth in depths:
        llm.memory.clear()
        if depth:
            append(llm, depth)
            llm.memory.checkpoint(SEQ_ID)
        for kind, lengths, timed in (("pp", prompts, append), ("tg", gens, decode)):
            for n_tokens in filter(None, lengths):
                rates = [n_tokens / _timed_from(llm, depth, timed, n_tokens) for _ in range(repetitions)]
                committed = llm.memory.stats().committed_bytes
                sd = statistics.stdev(rates) if repetitions > 1 else 0.0
                yield Result(f"{kind}{n_tokens}", depth, n_tokens, statistics.mean(rates), sd, committed)
    llm.memory.clear()


def append(llm: LLM, n_tokens: int) -> None:
    """Prefill: ``n_tokens`` in calls of ``n_batch``, logits of the last one."""
    from elastikv.batch import Batch, SeqTokens

    for start in range(0, n_tokens, llm.n_batch):
        tokens = _tokens(llm, min(llm.n_batch, n_tokens - start))
        llm.engine.decode(Batch([SeqTokens(SEQ_ID, tokens)]))


def decode(llm: LLM, n_tokens: int) -> None:
    """Decode: one token at a time."""
    from elastikv.batch import Batch, SeqTokens

    for token in _tokens(llm, n_tokens):
        llm.engine.decode(Batch([SeqTokens(SEQ_ID, [token])]))


def _timed_from(llm: LLM, depth: int, timed: Callable[[LLM, int], None], n_tokens: int) -> float:
    """Seconds of one repetition that starts with ``depth`` tokens in the cache."""
    llm.memory.seq_rm(SEQ_ID, depth)
    started = time.perf_counter()
    timed(llm, n_tokens)
    return time.perf_counter() - started


def _warm_up(llm: LLM) -> None:
    """Compile, page in the weights, and touch the buffers."""
    llm.engine.warm_up()
    append(llm, min(64, llm.n_ctx - 8))
    decode(llm, 4)


def _tokens(llm: LLM, n_tokens: int) -> list[int]:
    """Arbitrary but fixed tokens: their values do not change the work."""
    n_vocab = llm.model.info.n_vocab
    return [(7919 * i + 17) % n_vocab for i in range(n_tokens)]


def _lengths(name: str, text: str) -> list[int]:
    try:
        lengths = [int(part) for part in text.split(",")]
    except ValueError:
        lengths = [-1]
    if min(lengths) < 0:
        raise InvalidRequest(f"--{name.replace('_', '-')} takes whole numbers separated by commas, got {text!r}")
    return lengths


def _print_table(llm: LLM, results: Iterator[Result]) -> None:
    info = llm.model.info
    print(f"{info.name}: {info.architecture}, weights {format_bytes(info.weight_bytes)}")
    print(f"{'test':>8} {'depth':>8} {'tok/s':>18} {'KV committed':>14}")
    for result in results:
        rate = f"{result.mean:.2f} ± {result.sd:.2f}"
        print(f"{result.test:>8} {result.depth:>8} {rate:>18} {format_bytes(result.committed_bytes):>14}", flush=True)
