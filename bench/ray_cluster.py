"""Which router finds prompts in a cache: one trace of conversations through Ray Serve, once with each.

    python -m bench.ray_cluster                           # some minutes on two idle cores
    python -m bench.ray_cluster --talks 40 --routers prefix,round-robin
    python -m bench.ray_cluster --json bench/results/ray_cluster.json

The trace: --talks conversations of --turns turns; each begins with one of --systems system prompts of some 300 tokens.
--active of them go on at once, a turn each in turn, so that others speak between two turns of one; --clients requests
are under way at a time. Clients send what OpenAI's clients send, and no header.

    prefix           ours: where the beginning of the prompt is held
    round-robin      Ray's, one replica after the other
    power-of-two     Ray's default: of two drawn at random the one with less to do
    hash             Ray's consistent hashing, with a session header that names the conversation

cached: share of all prompt tokens that a cache held; first token: seconds; imbalance: requests of the busiest
replica over the mean.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench.clusters import Cluster, cluster
from bench.report import new_parser, write_json

ROUTERS = {
    "prefix": "elastikv.integrations.ray.router:PrefixRouter",
    "round-robin": "ray.serve.experimental.round_robin_router:RoundRobinRouter",
    "power-of-two": "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter",
    "hash": "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter",
}
WORDS = (
    "def",
    "class",
    "return",
    "value",
    "index",
    "list",
    "table",
    "number",
    "open",
    "close",
    "read",
    "write",
    "file",
)
HEAD = f"{'':14} {'cached':>7} {'1st token':>9} {'9th dec.':>9} {'imbalance':>10} {'seconds':>8} {'errors':>7}"


@dataclass
class Talk:
    """A conversation so far, and what its user will say."""

    name: str
    messages: list[dict[str, str]]
    sayings: deque[str]


@dataclass
class Outcome:
    """One run of the trace. first_token: seconds of each request; by_replica: requests."""

    router: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    first_token: list[float] = field(default_factory=list)
    by_replica: Counter[str] = field(default_factory=Counter)
    n_errors: int = 0
    seconds: float = 0.0

    @property
    def cached(self) -> float:
        return self.cached_tokens / max(self.prompt_tokens, 1)

    @property
    def imbalance(self) -> float:
        counts = list(self.by_replica.values())
        return max(counts) * len(counts) / sum(counts)


def trace(args: argparse.Namespace) -> list[Talk]:
    """The same for every router."""
    draw = random.Random(args.seed)

    def words(n: int) -> str:
        return " ".join(draw.choices(WORDS, k=n))

    systems = [words(220) for _ in range(args.systems)]
    return [
        Talk(
            f"talk {i}",
            [{"role": "system", "content": draw.choice(systems)}],
            deque(words(draw.randint(10, 60)) for _ in range(args.turns)),
        )
        for i in range(args.talks)
    ]


def replay(talks: list[Talk], url: str, router: str, args: argparse.Namespace) -> Outcome:
    """Every turn of every talk; a talk's next turn waits for its reply and for those of the others that are active."""
    outcome = Outcome(router)
    waiting, active = deque(talks[args.active :]), deque(talks[: args.active])
    lock = threading.Lock()

    def work() -> None:
        with httpx.Client(base_url=url, timeout=300) as client:
            while True:
                with lock:
                    if not active:
                        return
                    talk = active.popleft()
                ask(client, talk, outcome, lock, args.reply)
                with lock:
                    if talk.sayings:
                        active.append(talk)
                    elif waiting:
                        active.append(waiting.popleft())

    started = time.perf_counter()
    clients = [threading.Thread(target=work) for _ in range(args.clients)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    outcome.seconds = time.perf_counter() - started
    return outcome


def ask(client: httpx.Client, talk: Talk, outcome: Outcome, lock: threading.Lock, n_reply: int) -> None:
    """One turn."""
    talk.messages.append({"role": "user", "content": talk.sayings.popleft()})
    body = {"messages": talk.messages, "max_tokens": n_reply, "stream": True, "stream_options": {"include_usage": True}}
    headers = {"x-session-id": talk.name} if outcome.router == "hash" else {}
    reply, first, usage = "", None, None
    started = time.perf_counter()
    with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            event: dict[str, Any] = json.loads(line.removeprefix("data: "))
            usage = event.get("usage") or usage
            text = "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))
            if text and first is None:
                first = time.perf_counter() - started
            reply += text
        replica = response.headers.get("x-replica", "none")
    talk.messages.append({"role": "assistant", "content": reply})
    with lock:
        outcome.by_replica[replica] += 1
        if usage is None:
            outcome.n_errors += 1
            return
        outcome.prompt_tokens += usage["prompt_tokens"]
        outcome.cached_tokens += usage["prompt_tokens_details"]["cached_tokens"]
        outcome.first_token.append(time.perf_counter() - started if first is None else first)


def measure(running: Cluster, router: str, args: argparse.Namespace) -> Outcome:
    """A fresh application, and the trace."""
    from elastikv.integrations.ray.deployment import build

    replicas = {"min_replicas": args.replicas, "max_replicas": args.replicas, "num_cpus": 0.5, "threads": 1}
    running.run(build({"ctx_size": 4096, "temp": 0, **replicas}, ROUTERS[router]))
    return replay(trace(args), running.url, router, args)


def row(outcome: Outcome) -> str:
    deciles = statistics.quantiles(outcome.first_token, n=10)
    median = statistics.median(outcome.first_token)
    return (
        f"{outcome.router:14} {outcome.cached:7.1%} {median:9.3f} {deciles[-1]:9.3f} "
        f"{outcome.imbalance:10.2f} {outcome.seconds:8.1f} {outcome.n_errors:7}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--talks", type=int, default=200)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--systems", type=int, default=8)
    parser.add_argument("--active", type=int, default=32)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--reply", type=int, default=8, help="tokens")
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--routers", default=",".join(ROUTERS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    outcomes = []
    print(
        f"{'':14} {'cached':>7} {'TTFT':>9} {'9th dec.':>9} {'imbalance':>10} {'seconds':>8} {'errors':>7}", flush=True
    )
    with cluster() as running:
        for router in args.routers.split(","):
            outcomes.append(measure(running, router, args))
            print(row(outcomes[-1]), flush=True)
    rows = [
        {**asdict(o), "cached": o.cached, "imbalance": o.imbalance, "first_token": statistics.median(o.first_token)}
        for o in outcomes
    ]
    write_json(args.json, {"args": vars(args), "outcomes": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
