"""elastikv serve and llama-server side by side, on the same GGUF file.

    python -m bench.server_peers --shape qwen3-0.6b --clients 1 4 16 --seconds 30 --json bench/results/server_peers.json

One server at a time. Each client asks again as soon as its stream has ended, with a new random prompt, so nothing is
cached. Printed per number of clients: requests a second, generated tokens a second, time to first token, and resident
memory: idle after loading, highest under load, and --settle seconds after the last request. llama-server comes from
the `xllamacpp` package, or is the program that --llama-server names; "over llama.cpp" is elastikv's server with
`--runtime llama.cpp`. All get the same -c, --parallel, threads and batch sizes, and f16 cells.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx

from bench.processes import module_command
from bench.report import new_parser, quantile, write_json
from bench.shapes import add_shape_arguments, write_gguf, write_model
from elastikv.errors import format_bytes
from tools.servers import Server, elastikv_serve, serving

SIDES = ("elastikv", "over llama.cpp", "llama-server")


@dataclass
class Load:
    """What one number of clients saw. Seconds to the first token, per request; bytes are resident."""

    n_clients: int
    seconds: float = 0.0
    n_tokens: int = 0
    n_failed: int = 0
    first_token: list[float] = field(default_factory=list)
    peak_bytes: int = 0


@dataclass
class Side:
    name: str
    idle_bytes: int = 0
    settled_bytes: int = 0
    loads: list[Load] = field(default_factory=list)


def command_of(name: str, model: Path, port: int, args: argparse.Namespace) -> list[str]:
    if name == "llama-server" and args.llama_server:
        same = {"-m": model, "--port": port, "-c": args.ctx, "-np": args.parallel, "-t": args.threads, "-fa": "on"}
        return [str(part) for part in (args.llama_server, *(part for flag in same.items() for part in flag))]
    if name == "llama-server":
        return module_command("bench.server_peers", "--serve-llama", model, port, *sys.argv[1:])
    flags = {"-m": model, "-c": args.ctx, "--parallel": args.parallel, "-t": args.threads}
    if name == "over llama.cpp":
        flags["--runtime"] = "llama.cpp"
    return elastikv_serve(port, flags | {"--max-queue": 256, "--kv-idle-release": 2, "--kv-idle-drop": 20})


def serve_llama(model: str, port: int, args: argparse.Namespace) -> None:
    """llama.cpp's own HTTP server in this process, until it is killed."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_ctx = args.ctx
    params.n_parallel = args.parallel
    params.cpuparams.n_threads = args.threads
    params.cpuparams_batch.n_threads = args.threads
    params.n_gpu_layers = 0
    params.verbosity = 0
    server = xllamacpp.Server(params)
    signal.pause()
    del server


async def client(http: httpx.AsyncClient, load: Load, args: argparse.Namespace, seed: int, until: float) -> None:
    rng = random.Random(seed)
    while time.perf_counter() < until:
        prompt = [rng.randrange(10, 2000) for _ in range(args.prompt)]
        body = {"prompt": prompt, "max_tokens": args.gen, "stream": True, "temperature": 0, "ignore_eos": True}
        started = time.perf_counter()
        first = None
        try:
            async with http.stream("POST", "/v1/completions", json=body) as response:
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        first = first or time.perf_counter() - started
        except httpx.TransportError:
            first = None
        if first is None or response.status_code != 200:
            load.n_failed += 1
            continue
        load.first_token.append(first)
        load.n_tokens += args.gen


async def watch(server: Server, load: Load) -> None:
    while True:
        load.peak_bytes = max(load.peak_bytes, server.resident_bytes())
        await asyncio.sleep(0.1)


async def apply_load(server: Server, n_clients: int, args: argparse.Namespace) -> Load:
    load = Load(n_clients)
    limits = httpx.Limits(max_connections=n_clients)
    async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits) as http:
        watcher = asyncio.create_task(watch(server, load))
        started = time.perf_counter()
        seeds = range(n_clients * 1000, n_clients * 1000 + n_clients)
        await asyncio.gather(*(client(http, load, args, seed, started + args.seconds) for seed in seeds))
        load.seconds = time.perf_counter() - started
        watcher.cancel()
    return load


def measure(name: str, model: Path, args: argparse.Namespace) -> Side:
    side = Side(name)
    with serving(lambda port: command_of(name, model, port, args)) as server:
        time.sleep(2)
        side.idle_bytes = server.resident_bytes()
        # Compilation and first touches are not what is compared.
        body = {"prompt": list(range(10, 10 + args.prompt)), "max_tokens": 8, "ignore_eos": True}
        httpx.post(f"{server.url}/v1/completions", json=body, timeout=600).raise_for_status()
        for n_clients in args.clients:
            side.loads.append(asyncio.run(apply_load(server, n_clients, args)))
            print(f"  {name}: {n_clients} clients done", file=sys.stderr, flush=True)
        time.sleep(args.settle)
        side.settled_bytes = server.resident_bytes()
    return side


def print_table(sides: list[Side]) -> None:
    titles = ("server", "clients", "req/s", "tok/s", "TTFT p50", "p99", "peak RSS", "failed")
    widths = (14, 8, 8, 8, 10, 10, 10, 6)
    print("\n" + " ".join(title.rjust(width) for title, width in zip(titles, widths, strict=True)))
    for side in sides:
        for load in side.loads:
            rate = len(load.first_token) / load.seconds
            print(
                f"{side.name:>14} {load.n_clients:>8} {rate:>8.2f} {load.n_tokens / load.seconds:>8.1f} "
                f"{quantile(load.first_token, 0.5) * 1e3:>7.0f} ms {quantile(load.first_token, 0.99) * 1e3:>7.0f} ms "
                f"{format_bytes(load.peak_bytes):>10} {load.n_failed:>6}"
            )
    for side in sides:
        print(
            f"{side.name}: resident {format_bytes(side.idle_bytes)} after loading, "
            f"{format_bytes(max(load.peak_bytes for load in side.loads))} at the peak, "
            f"{format_bytes(side.settled_bytes)} when it had settled"
        )


def parse_args() -> argparse.Namespace:
    parser = new_parser(__doc__)
    add_shape_arguments(parser, "small")
    parser.add_argument("--type", default="q8_0", help="of the weights in the GGUF file")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["elastikv", "llama-server"])
    parser.add_argument("--llama-server", type=Path, metavar="PATH", help="a program to start, not xllamacpp")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=20.0, help="of load for each number of clients")
    parser.add_argument("--settle", type=float, default=60.0, help="seconds of rest before memory is read again")
    parser.add_argument("--prompt", type=int, default=256, help="tokens")
    parser.add_argument("--gen", type=int, default=64, help="tokens")
    parser.add_argument("-c", "--ctx", type=int, default=32768)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve-llama", nargs=2, metavar=("MODEL", "PORT"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.serve_llama:
        serve_llama(args.serve_llama[0], int(args.serve_llama[1]), args)
        return
    model = write_gguf(write_model(args.shape, args.models), args.type)
    sides = [measure(name, model, args) for name in args.sides]
    print_table(sides)
    write_json(args.json, {"arguments": vars(args), "sides": [asdict(side) for side in sides]})


if __name__ == "__main__":
    main()
