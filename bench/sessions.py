"""Many sessions of long-tailed lengths on one budget: elastic, static, and the bytes really used.

    python -m bench.sessions                              # some minutes on two idle cores
    python -m bench.sessions --sessions 200 --rate 12 --json bench/results/sessions.json

The trace: session i arrives after an exponential gap (Poisson arrivals, --rate a second) and has a prompt of
lognormal length (--median tokens, --sigma, cut at what -c leaves) and a reply of lognormal length (--reply median,
the same sigma, at most 512). Tokens are random, no two prompts share a beginning, replies are greedy.

    elastic   each session may grow to -c; capacity in steps of 256 cells
    exact     the same with no spare capacity but the rest of a page: the ideal, as far as pages allow
    static    -c cells for each slot, as many slots as the budget holds

A last run gets a third of the bytes that the trace wants when nothing holds it back. Every one of its replies
has to be there, and to be the reply of the run that had enough.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.report import new_parser, write_json
from bench.shapes import add_shape_arguments, write_model
from elastikv import LLM, SamplingParams, SchedulerOptions
from elastikv.engine.requests import Request
from elastikv.errors import format_bytes
from elastikv.memory.growth import parse_size

MAX_REPLY = 512
MANY = 512


@dataclass(frozen=True, slots=True)
class Arrival:
    seconds: float
    prompt: list[int]
    n_reply: int


@dataclass(slots=True)
class Outcome:
    """One run of the trace. Means are over time; ``overhead``: mean committed bytes over mean bytes needed."""

    mode: str
    n_slots: int
    kv_bytes: int
    n_running_mean: float
    n_running_max: int
    overhead: float
    peak_bytes: int
    seconds: float
    tokens_per_second: float
    first_token_p50: float
    first_token_p99: float
    n_preemptions: int
    n_failed: int
    replies: list[list[int]]


def make_trace(args: argparse.Namespace, n_vocab: int) -> list[Arrival]:
    rng = random.Random(args.seed)
    seconds, trace = 0.0, []
    for _ in range(args.sessions):
        seconds += rng.expovariate(args.rate)
        n_reply = min(max(4, round(rng.lognormvariate(0, args.sigma) * args.reply)), MAX_REPLY)
        n_prompt = min(max(8, round(rng.lognormvariate(0, args.sigma) * args.median)), args.ctx - n_reply)
        trace.append(Arrival(seconds, [rng.randrange(n_vocab) for _ in range(n_prompt)], n_reply))
    return trace


class Replay:
    """Plays the trace in real time on one scheduler and looks at it after every step."""

    def __init__(self, llm: LLM, trace: Sequence[Arrival]) -> None:
        self._llm = llm
        self._trace = trace
        self._requests: list[Request] = []
        self._first: dict[int, float] = {}
        self._weighted_running = self._weighted_committed = self._weighted_used = self._busy = 0.0
        self._n_running_max = 0

    def run(self, mode: str, n_slots: int, kv_bytes: int) -> Outcome:
        scheduler = self._llm.scheduler
        started = before = time.perf_counter()
        while len(self._requests) < len(self._trace) or scheduler.has_work:
            now = time.perf_counter() - started
            self._submit_due(now)
            if not scheduler.has_work:
                time.sleep(max(0.0, self._trace[len(self._requests)].seconds - now))
                before = time.perf_counter()
                continue
            scheduler.step()
            after = time.perf_counter()
            self._note_first_tokens(after - started)
            self._note_memory(after - before)
            before = after
        return self._outcome(mode, n_slots, kv_bytes, time.perf_counter() - started)

    def _submit_due(self, now: float) -> None:
        while len(self._requests) < len(self._trace) and self._trace[len(self._requests)].seconds <= now:
            arrival = self._trace[len(self._requests)]
            params = SamplingParams(temperature=0, max_tokens=arrival.n_reply, ignore_eos=True)
            self._requests.append(self._llm.scheduler.submit(arrival.prompt, params))

    def _note_first_tokens(self, now: float) -> None:
        for index, request in enumerate(self._requests):
            if index not in self._first and request.n_generated:
                self._first[index] = now - self._trace[index].seconds

    def _note_memory(self, seconds: float) -> None:
        stats = self._llm.scheduler.stats()
        self._n_running_max = max(self._n_running_max, stats.n_running)
        self._weighted_running += stats.n_running * seconds
        self._weighted_committed += stats.memory.committed_bytes * seconds
        needed = sum(self._llm.cost.n_bytes(sequence.used_cells) for sequence in stats.memory.sequences)
        self._weighted_used += needed * seconds
        self._busy += seconds

    def _outcome(self, mode: str, n_slots: int, kv_bytes: int, seconds: float) -> Outcome:
        stats = self._llm.scheduler.stats()
        waits = sorted(self._first.values())
        return Outcome(
            mode=mode,
            n_slots=n_slots,
            kv_bytes=kv_bytes,
            n_running_mean=self._weighted_running / self._busy,
            n_running_max=self._n_running_max,
            overhead=self._weighted_committed / self._weighted_used,
            peak_bytes=stats.memory.peak_committed_bytes - stats.memory.compute_bytes,
            seconds=seconds,
            tokens_per_second=sum(len(a.prompt) + a.n_reply for a in self._trace) / seconds,
            first_token_p50=statistics.median(waits),
            first_token_p99=waits[min(len(waits) - 1, round(0.99 * len(waits)))],
            n_preemptions=stats.n_preemptions,
            n_failed=sum(request.error is not None for request in self._requests),
            replies=[request.token_ids[request.n_prompt :] for request in self._requests],
        )


def play(
    args: argparse.Namespace,
    model: Path,
    trace: Sequence[Arrival],
    mode: str,
    kv_bytes: int | None,
    n_slots: int = MANY,
    **options: Any,
) -> Outcome:
    """One run in a fresh LLM; ``kv_bytes`` beside the compute buffers, None for no bound."""
    scheduling = SchedulerOptions(n_parallel=n_slots, max_queue=len(trace), prefix_reuse=False)
    with LLM(
        model, n_ctx=args.ctx, kernels=args.kernels, n_batch=2048, kv_budget="none", scheduler=scheduling, **options
    ) as llm:
        llm.engine.warm_up()
        llm.generate([trace[0].prompt[:300]], SamplingParams(temperature=0, max_tokens=4))
        llm.events.counts.clear()
        limit = llm.stats().compute_bytes + (kv_bytes or 0)
        llm.set_budget(limit if kv_bytes else "none")
        outcome = Replay(llm, trace).run(mode, n_slots, kv_bytes or 0)
        print(f"  {mode}: {outcome.seconds:.0f} s", file=sys.stderr, flush=True)
        llm.memory.check()
    return outcome


def check_alone(args: argparse.Namespace, model: Path, trace: Sequence[Arrival], replies: list[list[int]]) -> int:
    """How many of a sample of replies differ from the reply to the same prompt asked alone."""
    n_wrong = 0
    with LLM(model, n_ctx=args.ctx, kernels=args.kernels, n_batch=2048) as llm:
        llm.engine.warm_up()
        for index in range(0, len(trace), max(1, len(trace) // args.alone)):
            params = SamplingParams(temperature=0, max_tokens=trace[index].n_reply, ignore_eos=True)
            n_wrong += llm.generate([trace[index].prompt], params)[0].token_ids != replies[index]
            llm.clear()
    return n_wrong


def print_table(outcomes: Sequence[Outcome]) -> None:
    columns: list[tuple[str, Callable[[Outcome], str]]] = [
        ("run", lambda o: o.mode),
        ("KV budget", lambda o: format_bytes(o.kv_bytes) if o.kv_bytes else "none"),
        ("slots", lambda o: str(o.n_slots)),
        ("at once, mean", lambda o: f"{o.n_running_mean:.1f}"),
        ("max", lambda o: str(o.n_running_max)),
        ("committed / needed", lambda o: f"{o.overhead:.3f}"),
        ("peak KV", lambda o: format_bytes(o.peak_bytes)),
        ("tok/s", lambda o: f"{o.tokens_per_second:.0f}"),
        ("TTFT p50", lambda o: f"{o.first_token_p50:.2f} s"),
        ("p99", lambda o: f"{o.first_token_p99:.2f} s"),
        ("preempted", lambda o: str(o.n_preemptions)),
        ("failed", lambda o: str(o.n_failed)),
        ("wall", lambda o: f"{o.seconds:.1f} s"),
    ]
    rows = [[name for name, _ in columns], *([show(o) for _, show in columns] for o in outcomes)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    for row in rows:
        print(
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        )


def parse_args() -> argparse.Namespace:
    parser = new_parser(__doc__)
    add_shape_arguments(parser, "small")
    parser.add_argument("--model", type=Path, help="a model of your own instead of random weights in --shape")
    parser.add_argument("-c", "--ctx", type=int, default=8192)
    parser.add_argument("--budget", default="128MiB", help="bytes of KV memory for elastic, exact and static")
    parser.add_argument("--sessions", type=int, default=60)
    parser.add_argument("--rate", type=float, default=20.0, help="arrivals a second")
    parser.add_argument("--median", type=float, default=1200.0, help="tokens of a prompt")
    parser.add_argument("--reply", type=float, default=64.0, help="tokens of a reply")
    parser.add_argument("--sigma", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--alone", type=int, default=10, help="replies of the last run that are asked for again, alone")
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("-t", "--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    model = args.model or write_model(args.shape, args.models)
    with LLM(model, n_ctx=args.ctx, kernels=args.kernels) as llm:
        slot_bytes, n_vocab = llm.static_bytes(), llm.model.info.n_vocab
    trace = make_trace(args, n_vocab)
    lengths = sorted(len(arrival.prompt) + arrival.n_reply for arrival in trace)
    print(
        f"{len(trace)} sessions, {args.rate:g} a second; tokens p50 {lengths[len(lengths) // 2]}, mean "
        f"{statistics.mean(lengths):.0f}, p90 {lengths[len(lengths) * 9 // 10]}, max {lengths[-1]}; -c {args.ctx} "
        f"({format_bytes(slot_bytes)} static a session)\n"
    )
    budget = parse_size(args.budget)
    wanted = play(args, model, trace, "unbounded", None, kv_growth="step:256")
    third = wanted.peak_bytes // 3
    outcomes = [
        wanted,
        play(args, model, trace, "elastic", budget, kv_growth="step:256"),
        play(args, model, trace, "exact", budget, kv_growth="exact", kv_initial=1),
        play(args, model, trace, "static", budget, kv_dynamic=False, n_slots=max(1, budget // slot_bytes)),
        play(args, model, trace, "a third", third, kv_growth="step:256"),
    ]
    print_table(outcomes)
    n_different = sum(a != b for a, b in zip(wanted.replies, outcomes[-1].replies, strict=True))
    n_alone = check_alone(args, model, trace, outcomes[-1].replies)
    print(f"\na third of the bytes: {outcomes[-1].n_failed} of {len(trace)} failed, {n_different} replies differ from")
    print(f"the unbounded run, {n_alone} of {args.alone} from the same request alone")
    runs = [{**asdict(outcome), "replies": None} for outcome in outcomes]
    write_json(args.json, {"arguments": vars(args), "runs": runs})


if __name__ == "__main__":
    main()
