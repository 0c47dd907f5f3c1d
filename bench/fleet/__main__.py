"""Routers and the scaling policy on more replicas than fit a machine, simulated event by event.

    python -m bench.fleet                                        # 16 replicas
    python -m bench.fleet --replicas 1000 --seconds 120
    python -m bench.fleet --replicas 16 --scale --routers prefix # 1 replica, as many as memory needs, 1 again
    python -m bench.fleet --trace mooncake.jsonl                 # recorded, as Mooncake publishes them

What decides is the product's own code (elastikv.integrations.ray); replicas are a model: see bench/fleet/replica.py.
The same seed gives the same figures.

    prefix            ours: where most of the text is, unless others have much less to do
    round-robin       one after the other
    two-choices       of two drawn by chance the one with fewer requests
    consistent-hash   a conversation is always sent to the same replica; clients name their conversations

    cached            share of prompt tokens that were found where the request was sent
    ttft              seconds to the first token
    imbalance         the busiest replica's work by the mean
    refused           requests whose replicas' queues were full, or whose tokens fit none
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from bench.fleet import trace
from bench.fleet.replica import Machine
from bench.fleet.routers import ByPrefix, ConsistentHash, RoundRobin, Router, TwoChoices
from bench.fleet.scaling import Bounds
from bench.fleet.simulation import Clock, Outcome, Simulation
from bench.report import new_parser, write_json

MACHINE = Machine()
ROUTERS: dict[str, Callable[[Machine, int, Clock], Router]] = {
    "prefix": lambda machine, seed, clock: ByPrefix(machine.n_parallel, clock),
    "round-robin": lambda machine, seed, clock: RoundRobin(),
    "two-choices": lambda machine, seed, clock: TwoChoices(seed),
    "consistent-hash": lambda machine, seed, clock: ConsistentHash(),
}


def main(argv: list[str] | None = None) -> None:
    parser = new_parser(__doc__)
    parser.add_argument("--replicas", type=int, default=16)
    parser.add_argument("--scale", action="store_true", help="from 1 to --replicas, as the policy says")
    parser.add_argument("--routers", nargs="+", choices=ROUTERS, default=list(ROUTERS))
    parser.add_argument("--trace", type=Path, metavar="FILE", help="recorded requests, instead of made-up ones")
    parser.add_argument("--rate", type=float, help="conversations begun a second; none: 0.1 for each replica")
    parser.add_argument("--seconds", type=float, default=300, help="in which conversations begin")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the made-up trace")
    parser.add_argument("--cells", type=int, default=MACHINE.n_cells, help="budget of a replica, in tokens")
    parser.add_argument("--parallel", type=int, default=MACHINE.n_parallel, help="replies that one computes at once")
    parser.add_argument("--max-queue", type=int, default=MACHINE.max_queue)
    parser.add_argument("--prefill", type=float, default=MACHINE.prefill, help="tokens a second of a replica")
    parser.add_argument("--decode", type=float, default=MACHINE.decode, help="tokens a second of each reply")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    if args.replicas < 1:
        parser.error("--replicas must be at least 1")
    machine = Machine(args.cells, args.parallel, args.max_queue, args.prefill, args.decode)
    bounds = Bounds(1 if args.scale else args.replicas, args.replicas)
    try:
        requests = _requests(args)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    mean = sum(request.n_prompt for request in requests) / max(len(requests), 1)
    print(f"{len(requests)} requests with {mean:.0f} tokens each, {args.replicas} replicas")
    print(f"{'':15} {'cached':>7} {'ttft p50':>9} {'p99':>8} {'imbalance':>9} {'refused':>8} {'took':>8}")
    found = {}
    for name in args.routers:
        started = time.perf_counter()
        outcome = Simulation(machine, bounds, partial(ROUTERS[name], machine, args.seed)).run(requests)
        print(_line(name, outcome, time.perf_counter() - started), flush=True)
        if args.scale:
            print("  replicas: " + ", ".join(f"{size} from {seconds:.0f} s" for seconds, size in outcome.sizes))
        found[name] = asdict(outcome)
    write_json(args.json, found)


def _requests(args: argparse.Namespace) -> list[trace.Request]:
    if args.trace:
        return trace.read(args.trace)
    turns = trace.made_up(rate=args.rate or 0.1 * args.replicas, seconds=args.seconds, seed=args.seed)
    if args.save:
        trace.write(args.save, turns)
    return list(trace.requests(turns))


def _line(name: str, outcome: Outcome, seconds: float) -> str:
    cached = outcome.n_cached / max(outcome.n_prompt, 1)
    waits = f"{outcome.wait(0.5):7.2f} s {outcome.wait(0.99):6.2f} s"
    return f"{name:15} {cached:7.1%} {waits} {outcome.imbalance:9.2f} {outcome.n_refused:8} {seconds:6.1f} s"


if __name__ == "__main__":
    main()
