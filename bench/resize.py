"""Does a resize show in a token? Decode-step times around resizes, for each storage.

    python -m bench.resize                                  # the demo model
    python -m bench.resize -m FOLDER --prompt 1000 --steps 100 --plot docs/resize.png

One sequence is decoded token by token; a step is one `decode` call, resize included. The
configurations take turns at every step; each round starts with an empty cache.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.decoding import append, tokens
from bench.report import new_parser, pyplot, save_figure, write_json
from elastikv import LLM

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "mmap step:256": {"kv_storage": "mmap", "kv_growth": "step:256"},
    "copy double:1GiB": {"kv_storage": "copy", "kv_growth": "double:1GiB"},
    "copy step:256": {"kv_storage": "copy", "kv_growth": "step:256"},
}


@dataclass(slots=True)
class Steps:
    """Milliseconds of every step, and for those that resized the capacity they came to."""

    milliseconds: list[float] = field(default_factory=list)
    resized_to: dict[int, int] = field(default_factory=dict)

    def resized(self) -> list[float]:
        return [self.milliseconds[step] for step in self.resized_to]

    def others(self) -> list[float]:
        return [each for step, each in enumerate(self.milliseconds) if step not in self.resized_to]


def measure(engines: dict[str, LLM], n_prompt: int, n_steps: int) -> dict[str, Steps]:
    """The engines take turns at every step, so that whatever else the machine does strikes all of them."""
    for llm in engines.values():
        llm.memory.clear()
        append(llm, tokens(n_prompt))
    results = {name: Steps() for name in engines}
    for step in range(n_steps):
        for name, llm in engines.items():
            _take_step(llm, step, results[name])
    return results


def _take_step(llm: LLM, step: int, steps: Steps) -> None:
    capacity = llm.memory.max_capacity
    started = time.perf_counter()
    append(llm, [1 + step % 100])
    steps.milliseconds.append(1000 * (time.perf_counter() - started))
    if llm.memory.max_capacity != capacity:
        steps.resized_to[step] = llm.memory.max_capacity


def print_table(results: dict[str, list[Steps]]) -> None:
    columns = ("median", "99 %", "max", "resizes", "their median", "their max", "costs", "share")
    print(f"{'step times in ms':20}" + "".join(f"{column:>14}" for column in columns))
    for name, rounds in results.items():
        others = sorted(each for steps in rounds for each in steps.others())
        resized = [each for steps in rounds for each in steps.resized()]
        median = statistics.median(others)
        costs = statistics.median(resized) - median if resized else 0.0
        share = 100 * sum(each - median for each in resized) / (sum(others) + sum(resized))
        values = [median, others[int(0.99 * len(others))], others[-1], len(resized)]
        values += [statistics.median(resized), max(resized), costs] if resized else [0, 0, 0]
        cells = (f"{value:,.2f}" if isinstance(value, float) else f"{value}" for value in values)
        print(f"{name:20}" + "".join(f"{cell:>14}" for cell in cells) + f"{share:>12.2f} %")
    print("costs: median step that resized, less the median step; share: of all decoding time spent in that")


def plot(path: Path, results: dict[str, list[Steps]], n_prompt: int, title: str) -> None:
    """The first round of each configuration; circles mark the steps that resized."""
    size = (9, 2.2 * len(results))
    figure, rows = pyplot().subplots(len(results), 1, figsize=size, dpi=120, sharex=True, sharey=True)
    for axes, (name, rounds) in zip(rows, results.items(), strict=True):
        steps = rounds[0]
        positions = [n_prompt + step for step in range(len(steps.milliseconds))]
        axes.plot(positions, steps.milliseconds, linewidth=0.6, color="#3a6ea5")
        marked = list(steps.resized_to)
        axes.plot(
            [positions[step] for step in marked], steps.resized(), "o", mfc="none", color="#b0413e", label="resized"
        )
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_ylabel("ms")
        axes.set_ylim(0, None)
        axes.grid(alpha=0.3)
    rows[0].legend(frameon=False, loc="upper right")
    rows[-1].set_xlabel(f"tokens in the context ({title})")
    save_figure(figure, path)


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("-m", "--model")
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("--prompt", type=int, default=200, help="tokens before the measured steps")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every step's time to a file")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    args = parser.parse_args()
    n_ctx = max(args.prompt + args.steps, 4096)
    engines = {
        name: LLM(args.model, n_ctx=n_ctx, n_threads=args.threads, **options)
        for name, options in CONFIGURATIONS.items()
    }
    results: dict[str, list[Steps]] = {name: [] for name in engines}
    for llm in engines.values():
        llm.engine.warm_up()
    measure(engines, args.prompt, 20)  # compiles what is compiled once
    for _ in range(args.rounds):
        for name, steps in measure(engines, args.prompt, args.steps).items():
            results[name].append(steps)
    print_table(results)
    write_json(args.json, {name: [asdict(steps) for steps in rounds] for name, rounds in results.items()})
    if args.plot:
        plot(args.plot, results, args.prompt, Path(args.model).name if args.model else "demo model")
    for llm in engines.values():
        llm.close()


if __name__ == "__main__":
    main()
