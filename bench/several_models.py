"""Three models under one budget, beside three processes with a third of it each, on a trace that comes in bursts.

    python -m bench.several_models --shape small -t 2

A burst is for one of the models: --conversations of --turns turns each at once, which together need more than a third
of the budget and less than all of it; then the next model has one. Three times around. In each burst is also one
prompt of half the budget. Printed for each side: requests that finished and were refused, the share of prompt tokens
that were found in the cache, seconds to the first token, the whole time, KV memory at its peak, and resident memory.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench.processes import module_command
from bench.report import new_parser, quantile, write_json
from bench.shapes import add_shape_arguments, write_gguf, write_model
from elastikv.errors import format_bytes
from tools.servers import Server, elastikv_serve, serving

NAMES = ("a", "b", "c")
ROUNDS = 3


@dataclass
class Outcome:
    side: str
    n_finished: int = 0
    n_refused: int = 0
    n_prompt: int = 0
    n_cached: int = 0
    first_token: list[float] = field(default_factory=list)
    seconds: float = 0.0
    peak_kv_bytes: int = 0
    peak_resident_bytes: int = 0


class Client:
    """Asks the server that has a model."""

    def __init__(self, servers: dict[str, Server], args: argparse.Namespace, outcome: Outcome) -> None:
        self._http = httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=100))
        self._servers = servers
        self._args = args
        self._outcome = outcome

    async def burst(self, model: str, rng: random.Random) -> None:
        args = self._args
        long = [rng.randrange(10, 2000) for _ in range(args.long)]
        talks = [self._talk(model, random.Random(rng.random())) for _ in range(args.conversations)]
        await asyncio.gather(self._ask(model, long), *talks)

    async def _talk(self, model: str, rng: random.Random) -> None:
        history: list[int] = []
        for _ in range(self._args.turns):
            history += [rng.randrange(10, 2000) for _ in range(self._args.said)]
            reply = await self._ask(model, history)
            if reply is None:
                return
            history += reply

    async def _ask(self, model: str, prompt: list[int]) -> list[int] | None:
        """Token ids of the reply; None where the server has refused or cut it."""
        body = {"model": model, "prompt": prompt, "max_tokens": self._args.gen, "temperature": 0}
        body |= {"stream": True, "ignore_eos": True, "stream_options": {"include_usage": True}}
        started, first, text, last = time.perf_counter(), None, [], {}
        url = f"{self._servers[model].url}/v1/completions"
        async with self._http.stream("POST", url, json=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    first = first or time.perf_counter() - started
                    last = json.loads(line.removeprefix("data: "))
                    text += [choice.get("text", "") for choice in last.get("choices", ())]
        usage = last.get("usage") or {}
        outcome = self._outcome
        if response.status_code != 200 or usage.get("completion_tokens") != self._args.gen or first is None:
            outcome.n_refused += 1
            return None
        outcome.n_finished += 1
        outcome.first_token.append(first)
        outcome.n_prompt += usage["prompt_tokens"]
        outcome.n_cached += usage["prompt_tokens_details"]["cached_tokens"]
        return await self._tokens(model, "".join(text))

    async def _tokens(self, model: str, text: str) -> list[int]:
        url, body = f"{self._servers[model].url}/tokenize", {"model": model, "content": text, "add_special": False}
        tokens: list[int] = (await self._http.post(url, json=body)).json()["tokens"]
        return tokens

    async def kv_bytes(self) -> int:
        total = 0
        for server, model in {server: model for model, server in self._servers.items()}.items():
            memory = (await self._http.get(f"{server.url}/memory", params={"model": model})).json()
            total += memory["committed_bytes"] + memory["others_bytes"]
        return total


async def run_trace(side: str, servers: dict[str, Server], args: argparse.Namespace) -> Outcome:
    outcome = Outcome(side)
    client = Client(servers, args, outcome)

    async def watch() -> None:
        while True:
            outcome.peak_kv_bytes = max(outcome.peak_kv_bytes, await client.kv_bytes())
            resident = sum(server.resident_bytes() for server in set(servers.values()))
            outcome.peak_resident_bytes = max(outcome.peak_resident_bytes, resident)
            await asyncio.sleep(0.2)

    watching = asyncio.create_task(watch())
    rng, started = random.Random(0), time.perf_counter()
    for _ in range(ROUNDS):
        for model in NAMES:
            await client.burst(model, rng)
    outcome.seconds = time.perf_counter() - started
    watching.cancel()
    return outcome


def plan(model: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What a sequence of ``--long`` tokens takes."""
    flags = ("plan", "-m", model, "-c", args.ctx, "--at", args.long, "--kv-growth", "step:256", "--json")
    done = subprocess.run(module_command("elastikv", *flags), capture_output=True, text=True, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@contextlib.contextmanager
def one_budget(model: Path, args: argparse.Namespace) -> Iterator[dict[str, Server]]:
    def command(port: int) -> list[str]:
        models = [part for name in NAMES for part in ("-m", str(model), "-a", name)]
        return [*elastikv_serve(port, common(args)), *models]

    with serving(command) as server:
        yield dict.fromkeys(NAMES, server)


@contextlib.contextmanager
def a_third_each(model: Path, args: argparse.Namespace) -> Iterator[dict[str, Server]]:
    with contextlib.ExitStack() as stack:
        flags = common(args) | {"-m": model}
        yield {name: stack.enter_context(serving(lambda port: elastikv_serve(port, flags))) for name in NAMES}


def common(args: argparse.Namespace) -> dict[str, object]:
    flags = {"-c": args.ctx, "-t": args.threads, "-np": args.conversations + 1, "-ub": args.ubatch}
    return flags | {"--kernels": "cpu"}


Side = Callable[[Path, argparse.Namespace], contextlib.AbstractContextManager[dict[str, Server]]]
SIDES: dict[str, Side] = {"one budget": one_budget, "a third each": a_third_each}


def print_table(outcomes: Sequence[Outcome]) -> None:
    titles = ("side", "finished", "refused", "cached", "TTFT p50", "p99", "seconds", "KV peak", "resident")
    widths = (14, 9, 8, 7, 9, 8, 8, 10, 10)
    print(" ".join(title.rjust(width) for title, width in zip(titles, widths, strict=True)))
    for each in outcomes:
        cells = (
            each.side,
            str(each.n_finished),
            str(each.n_refused),
            f"{each.n_cached / max(each.n_prompt, 1):.0%}",
            f"{quantile(each.first_token, 0.5):.2f} s",
            f"{quantile(each.first_token, 0.99):.2f} s",
            f"{each.seconds:.0f}",
            format_bytes(each.peak_kv_bytes),
            format_bytes(each.peak_resident_bytes),
        )
        print(" ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))


def main() -> None:
    parser = new_parser(__doc__)
    add_shape_arguments(parser, "small")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--ctx", type=int, default=8192)
    parser.add_argument("--ubatch", type=int, default=128)
    parser.add_argument("--conversations", type=int, default=8)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--said", type=int, default=256, help="tokens of a user's turn")
    parser.add_argument("--gen", type=int, default=32, help="tokens of a reply")
    parser.add_argument("--long", type=int, default=6000, help="tokens of the long prompt: half of the budget")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each side, one after the other")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = write_gguf(write_model(args.shape, args.models, "float32"), "q8_0")
    document = plan(model, args)
    budget = 2 * document["rows"][0]["bytes"]
    print(f"{document['bytes_per_cell']} B a cell, a budget of {format_bytes(budget)} and the compute buffers\n")
    outcomes = []
    for _ in range(args.rounds):
        for name, side in SIDES.items():
            with side(model, args) as servers:
                compute = {server: compute_bytes(server) for server in set(servers.values())}
                for server in compute:
                    set_budget(server, budget // len(compute) + compute[server])
                outcomes.append(asyncio.run(run_trace(name, servers, args)))
    print_table(outcomes)
    write_json(args.json, [asdict(outcome) for outcome in outcomes])


def compute_bytes(server: Server) -> int:
    return int(httpx.get(f"{server.url}/memory").json()["compute_bytes"])


def set_budget(server: Server, n_bytes: int) -> None:
    """Each side has its compute buffers and the same room for cells beside them."""
    httpx.post(f"{server.url}/memory", json={"budget": str(n_bytes)}).raise_for_status()


if __name__ == "__main__":
    main()
