"""Minutes of clients that connect, stream, vanish, and send garbage and oversized bodies.

    python -m bench.soak --minutes 10 --json bench/results/soak.json

Six kinds of clients run against one real server process at once. Printed at the end: how many requests of which
kind were answered how, resident memory over time (no growth after the first minutes), whether /health always
answered and how fast, and the server's own integrity check of its memory. Exits with 1 if any of it is not well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from bench.report import new_parser, write_json
from bench.shapes import add_shape_arguments, write_model
from tools.servers import Server, elastikv_serve, serving

WORDS = ["cache", "token", "grow", "shrink", "budget", "stream", "page", "cell", "memory", "session", "idle", "park"]
MAX_BODY = 1 << 20


@dataclass
class Soak:
    """What the clients share, and what they saw."""

    url: str
    http: httpx.AsyncClient
    rng: random.Random
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    health_seconds: list[float] = field(default_factory=list)
    resident: list[tuple[float, int]] = field(default_factory=list)

    def prompt(self) -> str:
        """Mostly short, sometimes long; some begin alike."""
        n_words = min(int(self.rng.lognormvariate(3.5, 1.2)) + 1, 1500)
        start = "you are a helpful assistant " * 8 if self.rng.random() < 0.3 else ""
        return start + " ".join(self.rng.choice(WORDS) for _ in range(n_words))

    def body(self, **members: object) -> dict[str, object]:
        return {"prompt": self.prompt(), "max_tokens": self.rng.randrange(1, 120), **members}


async def complete(soak: Soak) -> str:
    """A client that asks and waits."""
    wish = soak.body(n=soak.rng.choice([1, 1, 1, 2, 3]), temperature=soak.rng.choice([0, 1]))
    response = await soak.http.post("/v1/completions", json=wish)
    return str(response.status_code)


async def stream(soak: Soak) -> str:
    """A client that reads its stream to the end."""
    last = ""
    async with soak.http.stream("POST", "/v1/completions", json=soak.body(stream=True)) as response:
        async for line in response.aiter_lines():
            last = line or last
    if response.status_code == 200 and last != "data: [DONE]":
        soak.problems.append(f"a stream ended with {last!r}")
    return str(response.status_code)


async def vanish(soak: Soak) -> str:
    """A client that leaves after a few chunks, or before the first."""
    n_chunks = soak.rng.randrange(0, 12)
    body = json.dumps(soak.body(stream=soak.rng.random() < 0.8, ignore_eos=True)).encode()
    reader, writer = await connect(soak)
    writer.write(head(body) + body)
    await writer.drain()
    for _ in range(n_chunks):
        if not await reader.readline():
            break
    writer.transport.abort()
    return "left"


async def garbage(soak: Soak) -> str:
    """Bytes that are no HTTP, JSON that is none, values that are wrong."""
    rng = soak.rng
    if rng.random() < 0.3:
        _, writer = await connect(soak)
        writer.write(rng.randbytes(rng.randrange(1, 4000)))
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.transport.abort()
        return "left"
    bodies = [rng.randbytes(300), b"{", b"[" * 5000, b'{"prompt": "\\ud800"}', b'{"prompt": 1, "n": -1}', b"null"]
    path = rng.choice(["/v1/completions", "/v1/chat/completions", "/tokenize", "/memory", "/slots/9?action=erase"])
    response = await soak.http.post(path, content=rng.choice(bodies), headers={"Content-Type": "application/json"})
    if response.status_code >= 500:
        soak.problems.append(f"garbage at {path} was answered with {response.status_code}")
    return str(response.status_code)


async def oversized(soak: Soak) -> str:
    """Bodies beyond the limit, announced or not; and ones that never end."""
    if soak.rng.random() < 0.5:
        _, writer = await connect(soak)
        writer.write(head(b"x" * 1000) + b"only this much")
        await writer.drain()
        await asyncio.sleep(soak.rng.random())
        writer.transport.abort()
        return "left"
    response = await soak.http.post("/v1/completions", json={"prompt": "x" * (MAX_BODY + 1)})
    return str(response.status_code)


async def meddle(soak: Soak) -> str:
    """Somebody who turns the memory's knobs."""
    await asyncio.sleep(1)
    wish = soak.rng.choice([{"shrink": True}, {"budget": "48MiB"}, {"budget": "96MiB"}])
    response = await soak.http.post("/memory", json=wish)
    return str(response.status_code)


async def connect(soak: Soak) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    address = urlsplit(soak.url)
    return await asyncio.open_connection(address.hostname, address.port)


def head(body: bytes) -> bytes:
    lines = ["POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode()


CLIENTS: list[tuple[Callable[[Soak], Awaitable[str]], int]] = [
    (complete, 3),
    (stream, 4),
    (vanish, 4),
    (garbage, 1),
    (oversized, 1),
    (meddle, 1),
]


async def repeat(client: Callable[[Soak], Awaitable[str]], soak: Soak, until: float) -> None:
    while time.monotonic() < until:
        try:
            outcome = await client(soak)
        except (OSError, httpx.TransportError) as error:
            outcome = type(error).__name__
        soak.outcomes[client.__name__, outcome] += 1
        await asyncio.sleep(soak.rng.random() * 0.2)


async def watch(soak: Soak, server: Server, until: float) -> None:
    """Health every second, resident memory with it."""
    started = time.monotonic()
    while time.monotonic() < until:
        asked = time.monotonic()
        response = await soak.http.get("/health")
        soak.health_seconds.append(time.monotonic() - asked)
        if response.status_code != 200:
            soak.problems.append(f"/health answered {response.status_code}")
        soak.resident.append((asked - started, server.resident_bytes()))
        await asyncio.sleep(1)


async def run(args: argparse.Namespace, server: Server) -> Soak:
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as http:
        soak = Soak(server.url, http, random.Random(args.seed))
        until = time.monotonic() + args.minutes * 60
        clients = [repeat(client, soak, until) for client, n in CLIENTS for _ in range(n)]
        await asyncio.gather(watch(soak, server, until), *clients)
        await settle(soak)
    return soak


async def settle(soak: Soak) -> None:
    """Nothing may still run for clients that have gone, and the memory has to be sound."""
    for _ in range(100):
        memory = (await soak.http.get("/memory")).json()
        if not memory["n_running"] + memory["n_waiting"]:
            break
        await asyncio.sleep(0.1)
    else:
        soak.problems.append(f"{memory['n_running']} generations still run without a client")
    check = (await soak.http.get("/memory/check")).json()
    if not check["sound"]:
        soak.problems.append(f"the memory is not sound: {check['problem']}")


def report(args: argparse.Namespace, soak: Soak, server: Server) -> dict[str, object]:
    mib = [(t, n / 2**20) for t, n in soak.resident]
    early = [n for t, n in mib if t < args.minutes * 60 * 0.3]
    late = [n for t, n in mib if t >= args.minutes * 60 * 0.7]
    growth = statistics.median(late) - max(early)
    if growth > args.tolerance:
        soak.problems.append(f"resident memory grew by {growth:.1f} MiB")
    soak.problems += [f"the server wrote: {line}" for line in server.lines() if "Traceback" in line or "Error" in line]
    for (client, outcome), n in sorted(soak.outcomes.items()):
        print(f"{client:>10} {outcome:>14} {n:>6}")
    slow = sorted(soak.health_seconds)
    print(f"/health: {len(slow)} times, median {slow[len(slow) // 2] * 1e3:.0f} ms, worst {slow[-1] * 1e3:.0f} ms")
    print(
        f"resident: start {mib[0][1]:.0f} MiB, highest of the first 30 % {max(early):.0f} MiB, "
        f"median of the last 30 % {statistics.median(late):.0f} MiB, highest at all {max(n for _, n in mib):.0f} MiB"
    )
    print("problems:", "none" if not soak.problems else "")
    for problem in soak.problems[:20]:
        print(f"  {problem}")
    return {
        "minutes": args.minutes,
        "outcomes": {f"{client} {outcome}": n for (client, outcome), n in sorted(soak.outcomes.items())},
        "resident_mib": [[round(t), round(n, 1)] for t, n in mib[:: max(1, len(mib) // 200)]],
        "health_worst_seconds": slow[-1],
        "problems": soak.problems,
    }


def main() -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    add_shape_arguments(parser, "small")
    parser.add_argument("--model", type=Path, help="a model of your own instead of random weights in --shape")
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--kernels", default="auto")
    parser.add_argument("--tolerance", type=float, default=16.0, help="MiB of growth that are no leak")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = args.model or write_model(args.shape, args.models)
    with tempfile.TemporaryDirectory() as park:
        flags = {"-m": model, "-c": 4096, "-t": args.threads, "--kernels": args.kernels, "--parallel": 6}
        flags |= {"--max-queue": 8, "--max-body": MAX_BODY, "--kv-budget": "96MiB", "--kv-park": park}
        flags |= {"--kv-idle-release": 2, "--kv-idle-drop": 10}
        with serving(lambda port: elastikv_serve(port, flags)) as server:
            soak = asyncio.run(run(args, server))
            result = report(args, soak, server)
            status = server.end()
    print(f"exit status of the server: {status}")
    write_json(args.json, result)
    return 1 if soak.problems or status else 0


if __name__ == "__main__":
    sys.exit(main())
