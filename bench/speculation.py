"""Prompt lookup on and off, in turns, for prompts whose replies repeat them and for prompts whose replies do not.

    python -m bench.speculation -m MODEL -n 256 --repeats 5 --json bench/results/speculation.json
    python -m bench.speculation                    # the demo model, whose recurrent layers keep guessing off

    edit   a file twice, the second time up to its first lines: the reply copies what stands above
    free   the beginning of a text
    noise  random tokens: whatever is guessed is wrong

Replies are greedy, from the same process and in turns, so that what slows the machine slows both sides; each figure
is the median of the repeats. The last column counts what was guessed and what of it came true.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from pathlib import Path

from bench.report import new_parser, write_json
from elastikv import LLM, SamplingParams, SchedulerOptions

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


def prompts(llm: LLM) -> dict[str, list[int]]:
    """Name and tokens of each prompt."""
    chance = random.Random(0)
    return {
        "edit": llm.tokenizer.encode(_FILE * 2 + _FILE[:120]),
        "free": llm.tokenizer.encode("Once upon a time"),
        "noise": [chance.randrange(llm.model.info.n_vocab) for _ in range(200)],
    }


def measure(off: LLM, on: LLM, n_predict: int, n_repeats: int) -> list[dict[str, object]]:
    """A row for each prompt: tokens per second of both sides. Raises SystemExit if their texts differ."""
    params = SamplingParams(temperature=0, max_tokens=n_predict, ignore_eos=True)
    rows: list[dict[str, object]] = []
    for name, tokens in prompts(off).items():
        speeds: dict[LLM, list[float]] = {off: [], on: []}
        for repeat in range(n_repeats + 1):
            outputs = {}
            for llm in (off, on) if repeat % 2 else (on, off):
                outputs[llm] = llm.generate([tokens], params)[0]
                timings = outputs[llm].timings
                speeds[llm].append(timings.predicted_n / timings.predicted_seconds)
            if outputs[off].token_ids != outputs[on].token_ids:
                raise SystemExit(f"{name}: the texts differ")
        medians = {llm: statistics.median(each[1:]) for llm, each in speeds.items()}  # the first warms up
        gains = [b / a for a, b in zip(speeds[off][1:], speeds[on][1:], strict=True)]
        rows.append(
            {
                "prompt": name,
                "off": medians[off],
                "on": medians[on],
                "ratio": statistics.median(gains),
                "draft_n": outputs[on].timings.draft_n,
                "draft_n_accepted": outputs[on].timings.draft_n_accepted,
            }
        )
    return rows


def main(argv: list[str] | None = None) -> int:
    """Measure and report."""
    args = _parser().parse_args(argv)
    options = SchedulerOptions(speculation="ngram-simple", ngram_size_n=args.size_n, ngram_size_m=args.size_m)
    keywords = {"n_ctx": 4096, "n_threads": args.threads}
    with LLM(args.model, **keywords) as off, LLM(args.model, **keywords, scheduler=options) as on:
        rows = measure(off, on, args.predict, args.repeats)
    print(f"{'prompt':8}{'off':>10}{'on':>10}{'on/off':>8}   drafted, accepted")
    for row in rows:
        speeds = f"{row['off']:10.1f}{row['on']:10.1f}{row['ratio']:8.2f}"
        print(f"{row['prompt']:8}{speeds}   {row['draft_n']}, {row['draft_n_accepted']}")
    if args.json:
        write_json(args.json, {"rows": rows})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(__doc__)
    parser.add_argument("-m", "--model", help="none: the demo model")
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("-n", "--predict", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--size-n", type=int, default=3)
    parser.add_argument("--size-m", type=int, default=16)
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
