"""Prompt lookup on and off, in turns, for prompts whose replies repeat them and for prompts whose replies do not.

    python -m bench.speculation -m MODEL -n 256 --repeats 5 --json bench/results/speculation.json
    python -m bench.speculation                    # the demo model, with recurrent layers

    edit    a file twice, the second time up to its first lines: the reply copies what stands above
    free    the beginning of a text
    varied  the same at temperature 1, where hardly anything repeats itself: what guessing costs
    noise   random tokens

Replies are greedy but for "varied", from the same processes and in turns, so that what slows the machine slows both
sides; each figure is the median of the repeats. The last column counts what was guessed and what of it came true.

    python -m bench.speculation -m model.gguf --llama-server llama.cpp/build/bin/llama-server

measures that server beside it, without and with prompt lookup of the same sizes.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.report import new_parser, write_json
from elastikv import LLM, SamplingParams, SchedulerOptions
from tools.servers import serving

_FILE = '''class Stack:
    """Last in, first out."""

    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        if not self.items:
            raise IndexError("pop from an empty stack")
        return self.items.pop()

    def __len__(self):
        return len(self.items)


'''


@dataclass(frozen=True)
class Case:
    """A prompt, and how its reply is chosen."""

    name: str
    tokens: list[int]
    temperature: float = 0.0


@dataclass(frozen=True)
class Reply:
    token_ids: list[int]
    tokens_per_second: float
    draft_n: int
    draft_n_accepted: int


Side = Callable[[Case, int, int], Reply]
"""Answers a case with a number of tokens, by a seed."""


def cases(llm: LLM) -> list[Case]:
    chance = random.Random(0)
    beginning = llm.tokenizer.encode("Once upon a time")
    return [
        Case("edit", llm.tokenizer.encode(_FILE * 2 + _FILE[:120])),
        Case("free", beginning),
        Case("varied", beginning, temperature=1.0),
        Case("noise", [chance.randrange(llm.model.info.n_vocab) for _ in range(200)]),
    ]


def own_side(llm: LLM) -> Side:
    def reply(case: Case, n_predict: int, seed: int) -> Reply:
        params = SamplingParams(temperature=case.temperature, seed=seed, max_tokens=n_predict, ignore_eos=True)
        output = llm.generate([case.tokens], params)[0]
        timings = output.timings
        rate = timings.predicted_n / timings.predicted_seconds
        return Reply(output.token_ids, rate, timings.draft_n, timings.draft_n_accepted)

    return reply


def llama_side(url: str) -> Side:
    http = httpx.Client(base_url=url, timeout=600)

    def reply(case: Case, n_predict: int, seed: int) -> Reply:
        body = {"prompt": case.tokens, "n_predict": n_predict, "temperature": case.temperature, "seed": seed}
        answer = http.post("/completion", json={**body, "ignore_eos": True, "return_tokens": True}).json()
        timings = answer["timings"]
        counts = timings.get("draft_n", 0), timings.get("draft_n_accepted", 0)
        return Reply(answer["tokens"], timings["predicted_per_second"], *counts)

    return reply


@contextmanager
def llama_server(args: argparse.Namespace, flags: list[str]) -> Iterator[str]:
    """The address of a llama-server."""
    threads = ["-t", str(args.threads)] if args.threads else []

    def command(port: int) -> list[str]:
        return [args.llama_server, "-m", args.model, "-c", "4096", "-np", "1", "--port", str(port), *threads, *flags]

    with serving(command) as server:
        yield server.url


def measure(cases: list[Case], off: Side, on: Side, n_predict: int, n_repeats: int) -> list[dict[str, object]]:
    """A row for each case: tokens per second of both sides, and whether all their texts were the same."""
    rows: list[dict[str, object]] = []
    for case in cases:
        speeds: dict[Side, list[float]] = {off: [], on: []}
        same = True
        for repeat in range(n_repeats + 1):
            replies = {side: side(case, n_predict, repeat) for side in ((off, on) if repeat % 2 else (on, off))}
            for side, reply in replies.items():
                speeds[side].append(reply.tokens_per_second)
            same &= replies[off].token_ids == replies[on].token_ids
        medians = {side: statistics.median(each[1:]) for side, each in speeds.items()}  # the first warms up
        gains = [b / a for a, b in zip(speeds[off][1:], speeds[on][1:], strict=True)]
        rows.append(
            {
                "prompt": case.name,
                "off": medians[off],
                "on": medians[on],
                "ratio": statistics.median(gains),
                "draft_n": replies[on].draft_n,
                "draft_n_accepted": replies[on].draft_n_accepted,
                "same": same,
            }
        )
    return rows


def print_rows(name: str, rows: list[dict[str, object]]) -> None:
    print(f"{name:14}{'off':>10}{'on':>10}{'on/off':>8}   drafted, accepted")
    for row in rows:
        speeds = f"{row['off']:10.1f}{row['on']:10.1f}{row['ratio']:8.2f}"
        texts = "" if row["same"] else "   texts differ"
        print(f"{row['prompt']:14}{speeds}   {row['draft_n']}, {row['draft_n_accepted']}{texts}", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Measure and report."""
    args = _parser().parse_args(argv)
    options = SchedulerOptions(speculation="ngram-simple", ngram_size_n=args.size_n, ngram_size_m=args.size_m)
    keywords = {"n_ctx": 4096, "n_threads": args.threads, "kernels": "cpu"}  # all by one kind of kernels
    results = {}
    with ExitStack() as stack:
        off = stack.enter_context(LLM(args.model, **keywords))
        on = stack.enter_context(LLM(args.model, **keywords, scheduler=options))
        sides = {"elastikv": (own_side(off), own_side(on))}
        if args.llama_server:
            kind = args.llama_spec_type
            sizes = [f"--spec-{kind}-size-n", str(args.size_n), f"--spec-{kind}-size-m", str(args.size_m)]
            urls = [stack.enter_context(llama_server(args, more)) for more in ([], ["--spec-type", kind, *sizes])]
            sides["llama-server"] = (llama_side(urls[0]), llama_side(urls[1]))
        for name, pair in sides.items():
            results[name] = measure(cases(off), *pair, args.predict, args.repeats)
            print_rows(name, results[name])
    if args.json:
        write_json(args.json, results)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument("-m", "--model", help="none: the demo model")
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("-n", "--predict", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--size-n", type=int, default=3)
    parser.add_argument("--size-m", type=int, default=16)
    parser.add_argument("--llama-server", metavar="PATH", help="another side; needs -m, a GGUF file")
    parser.add_argument("--llama-spec-type", default="ngram-map-k", help="its kind of prompt lookup")
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
