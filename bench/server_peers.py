"""elastikv serve and llama-server side by side, on the same GGUF file.

    python bench/server_peers.py --shape qwen3-0.6b --clients 1 4 16 --seconds 30 --json bench/results/server_peers.json

One server at a time. Each client asks again as soon as its stream has ended, with a new random prompt, so nothing is
cached. Printed per number of clients: requests a second, generated tokens a second, time to first token, and resident
memory: idle after loading, highest under load, and --settle seconds after the last request. llama-server comes from
the `xllamacpp` package; both get the same -c, --parallel, threads and batch sizes, and f16 cells.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
import psutil

from elastikv.errors import format_bytes

sys.path.append(str(Path(__file__).parent))
from shapes import SHAPES, write_gguf, write_model

SIDES = ("elastikv", "llama-server")


@dataclass
class Load:
    """What one number of clients saw. Seconds to the first token, per request; bytes are resident."""

    n_clients: int
    seconds: float = 0.0
    n_tokens: int = 0
    n_failed: int = 0
    first_token: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def quantile(self, q: float) -> float:
        ordered = sorted(self.first_token)
        return ordered[min(len(ordered) - 1, round(q * len(ordered)))] if ordered else float("nan")


@dataclass
class Side:
    name: str
    idle_bytes: int = 0
    settled_bytes: int = 0
    loads: list[Load] = field(default_factory=list)


def command_of(name: str, model: Path, port: int, args: argparse.Namespace) -> list[str]:
    if name == "llama-server":
        return [sys.executable, __file__, "--serve-llama", str(model), str(port), *sys.argv[1:]]
    flags = {"-m": model, "--port": port, "-c": args.ctx, "--parallel": args.parallel, "-t": args.threads}
    flags |= {"--max-queue": 256, "--kv-idle-release": 2, "--kv-idle-drop": 20}
    return [sys.executable, "-m", "elastikv", "serve", *(str(part) for flag in flags.items() for part in flag)]


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


@contextmanager
def running(name: str, model: Path, args: argparse.Namespace) -> Iterator[tuple[str, psutil.Process]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command_of(name, model, port, args), stdout=log, stderr=log) as process,
    ):
        url = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 300
            while not _is_healthy(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"{name} did not start:\n{log.read()[-2000:].decode(errors='replace')}")
                time.sleep(0.1)
            yield url, psutil.Process(process.pid)
        finally:
            process.kill()


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


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


async def watch(process: psutil.Process, load: Load) -> None:
    while True:
        load.peak_bytes = max(load.peak_bytes, process.memory_info().rss)
        await asyncio.sleep(0.1)


async def apply_load(url: str, process: psutil.Process, n_clients: int, args: argparse.Namespace) -> Load:
    load = Load(n_clients)
    limits = httpx.Limits(max_connections=n_clients)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        watcher = asyncio.create_task(watch(process, load))
        started = time.perf_counter()
        seeds = range(n_clients * 1000, n_clients * 1000 + n_clients)
        await asyncio.gather(*(client(http, load, args, seed, started + args.seconds) for seed in seeds))
        load.seconds = time.perf_counter() - started
        watcher.cancel()
    return load


def measure(name: str, model: Path, args: argparse.Namespace) -> Side:
    side = Side(name)
    with running(name, model, args) as (url, process):
        time.sleep(2)
        side.idle_bytes = process.memory_info().rss
        # Compilation and first touches are not what is compared.
        body = {"prompt": list(range(10, 10 + args.prompt)), "max_tokens": 8, "ignore_eos": True}
        httpx.post(f"{url}/v1/completions", json=body, timeout=600).raise_for_status()
        for n_clients in args.clients:
            side.loads.append(asyncio.run(apply_load(url, process, n_clients, args)))
            print(f"  {name}: {n_clients} clients done", file=sys.stderr, flush=True)
        time.sleep(args.settle)
        side.settled_bytes = process.memory_info().rss
    return side


def print_table(sides: list[Side]) -> None:
    titles = ("server", "clients", "req/s", "tok/s", "TTFT p50", "p99", "peak RSS", "failed")
    widths = (12, 8, 8, 8, 10, 10, 10, 6)
    print("\n" + " ".join(title.rjust(width) for title, width in zip(titles, widths, strict=True)))
    for side in sides:
        for load in side.loads:
            rate = len(load.first_token) / load.seconds
            print(
                f"{side.name:>12} {load.n_clients:>8} {rate:>8.2f} {load.n_tokens / load.seconds:>8.1f} "
                f"{load.quantile(0.5) * 1e3:>7.0f} ms {load.quantile(0.99) * 1e3:>7.0f} ms "
                f"{format_bytes(load.peak_bytes):>10} {load.n_failed:>6}"
            )
    for side in sides:
        print(
            f"{side.name}: resident {format_bytes(side.idle_bytes)} after loading, "
            f"{format_bytes(max(load.peak_bytes for load in side.loads))} at the peak, "
            f"{format_bytes(side.settled_bytes)} when it had settled"
        )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "elastikv-bench")
    parser.add_argument("--type", default="q8_0", help="of the weights in the GGUF file")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
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
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        arguments = {name: str(value) for name, value in vars(args).items()}
        args.json.write_text(json.dumps({"arguments": arguments, "sides": [asdict(s) for s in sides]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
