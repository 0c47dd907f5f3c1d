"""elastikv, llama.cpp and transformers on the same random weights, alternating in one run.

    python bench/peers.py --shape qwen3-0.6b --precision q8_0 --depths 32,512,4096 --prompts 512 --rounds 3

Each side is a process of its own that loads its model once and then waits for orders, so that only one side
computes at a time. Contexts are filled by real prefill. llama.cpp comes from the `xllamacpp` package and is timed
by its own server's `timings`; transformers runs a plain loop over `model(...)` with a DynamicCache, in float32.

llama.cpp takes a quarter of an hour for a prompt of 16,384 tokens. With `--slots DIR` its context is saved once, and
restored for every other precision, whose cells are as many and as large:

    python bench/peers.py --precision q4_0 bf16 f32 --prompts "" --depths 16384 --slots /var/tmp/slots
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from shapes import SHAPES, write_gguf, write_model

# A precision: type of the folder's weights, type of the GGUF's, what elastikv reads, whether transformers takes part.
PRECISIONS: dict[str, tuple[str, str, str, bool]] = {
    "f32": ("float32", "f32", "folder", True),
    "bf16": ("bfloat16", "f16", "folder", False),
    "q8_0": ("bfloat16", "q8_0", "gguf", False),
    "q4_0": ("bfloat16", "q4_0", "gguf", False),
    "q4_k_m": ("bfloat16", "q4_k_m", "gguf", False),
}
MARGIN = 1024


def tokens(n_tokens: int, salt: int) -> list[int]:
    """Fixed arbitrary tokens that every side's vocabulary has."""
    return [(7919 * i + 104729 * salt) % 2000 + 10 for i in range(n_tokens)]


# --- the sides: each prefills `n` tokens from empty, or decodes `n` tokens at a depth; both return seconds ---


class ElastikvSide:
    def __init__(self, model: Path, threads: int, n_ctx: int, n_parallel: int) -> None:
        from elastikv import LLM

        self.llm = LLM(model, n_ctx=n_ctx, n_threads=threads, kv_budget="none")

    def prefill(self, n: int, salt: int, seq_id: int = 0) -> float:
        from elastikv.batch import Batch, SeqTokens

        self.llm.memory.seq_rm(seq_id)
        ids, step = tokens(n, salt), self.llm.n_batch
        started = time.perf_counter()
        for i in range(0, n, step):
            self.llm.engine.decode(Batch([SeqTokens(seq_id, ids[i : i + step])]))
        return time.perf_counter() - started

    def decode(self, n: int, depth: int, salt: int, count: int = 1) -> float:
        from elastikv.batch import Batch, SeqTokens

        for seq_id in range(count):
            self._fill(depth, salt + seq_id, seq_id)
        next_tokens, started = [11] * count, time.perf_counter()
        for _ in range(n):
            batch = Batch([SeqTokens(seq_id, [token]) for seq_id, token in enumerate(next_tokens)])
            next_tokens = self.llm.engine.decode(batch).argmax(1).tolist()
        return time.perf_counter() - started

    def _fill(self, depth: int, salt: int, seq_id: int) -> None:
        memory = self.llm.memory
        if memory.seq_pos_max(seq_id) + 1 < depth or not memory.seq_rm(seq_id, depth):
            self.prefill(depth, salt, seq_id)
            memory.checkpoint(seq_id)


class LlamaCppSide:
    def __init__(self, model: Path, threads: int, n_ctx: int, n_parallel: int, slots: str = "") -> None:
        import xllamacpp

        self._slots = Path(slots) if slots else None
        self._restored = ""

        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        params.n_ctx = n_ctx * n_parallel  # which its slots share out
        params.n_parallel = n_parallel
        params.cpuparams.n_threads = threads
        params.cpuparams_batch.n_threads = threads
        params.n_gpu_layers = 0
        params.fit_params = False
        params.cache_ram_mib = 0
        params.verbosity = 0
        if self._slots is not None:
            params.slot_save_path = f"{self._slots}/"
            params.endpoint_slots = True
        self.server = xllamacpp.Server(params)

    def _complete(self, prompt: list[int], n_predict: int, slot: int = 0) -> dict[str, Any]:
        answer = self.server.handle_completions(
            {"prompt": prompt, "n_predict": n_predict, "max_tokens": n_predict, "temperature": 0.0,
             "ignore_eos": True, "cache_prompt": True, "timings_per_token": False, "id_slot": slot}
        )  # fmt: skip
        answer = json.loads(answer) if isinstance(answer, str) else answer
        if "timings" not in answer:
            raise RuntimeError(f"llama.cpp answered without timings: {str(answer)[:300]}")
        return answer["timings"]

    def _move_slot(self, action: str, name: str) -> None:
        """Save the first slot's cells to a file, or restore them."""
        request = urllib.request.Request(
            f"{self.server.listening_address}/slots/0?action={action}",
            data=json.dumps({"filename": name}).encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request).read()

    def _fill_from_file(self, depth: int, salt: int) -> None:
        """Have the first slot hold the prompt that another precision has computed, or compute it and save it."""
        assert self._slots is not None
        name = f"{depth}-{salt}.bin"
        if self._restored == name:
            return
        if (self._slots / name).exists():
            self._move_slot("restore", name)
        else:
            self._complete(tokens(depth, salt), 1)
            self._move_slot("save", name)
        self._restored = name

    def prefill(self, n: int, salt: int) -> float:
        self._restored = ""
        timings = self._complete(tokens(n, salt), 1)
        return n * timings["prompt_ms"] / timings["prompt_n"] / 1e3

    def decode(self, n: int, depth: int, salt: int, count: int = 1) -> float:
        """Of ``count`` slots the slowest counts; they start together, because their prompts are in their caches."""
        prompts = [tokens(depth, salt + slot) for slot in range(count)]
        if self._slots is not None and count == 1 and depth > MARGIN:
            self._fill_from_file(depth, salt)
        if count > 1:
            for slot, prompt in enumerate(prompts):
                self._complete(prompt, 1, slot)
        with ThreadPoolExecutor(count) as pool:
            # The first token belongs to the prompt: n + 1 tokens are n steps.
            timings = list(pool.map(lambda slot: self._complete(prompts[slot], n + 1, slot), range(count)))
        return max(n * each["predicted_ms"] / (each["predicted_n"] - 1) / 1e3 for each in timings)


class TransformersSide:
    def __init__(self, model: Path, threads: int, n_ctx: int, n_parallel: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.cache: Any = None

    def _step(self, ids: list[int]) -> int:
        with self.torch.no_grad():
            out = self.model(self.torch.tensor([ids]), past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values
        return int(out.logits[0, -1].argmax())

    def prefill(self, n: int, salt: int) -> float:
        self.cache = None
        started = time.perf_counter()
        self._step(tokens(n, salt))
        return time.perf_counter() - started

    def decode(self, n: int, depth: int, salt: int) -> float:
        held = self.cache.get_seq_length() if self.cache is not None else -1
        if held != depth:
            self.prefill(depth, salt)
        token, started = 11, time.perf_counter()
        for _ in range(n):
            token = self._step([token])
        seconds = time.perf_counter() - started
        if hasattr(self.cache, "crop"):
            self.cache.crop(-n)  # what was decoded is forgotten
        return seconds


SIDES: dict[str, Callable[..., Any]] = {
    "elastikv": ElastikvSide,
    "llama.cpp": LlamaCppSide,
    "transformers": TransformersSide,
}


# --- one process per side ---


def serve_side(name: str, model: str, slots: str, threads: int, n_ctx: int, n_parallel: int) -> None:
    """Obey one JSON order a line: {"op": "prefill" | "decode", ...} -> {"seconds": ...}."""
    more = (slots,) if name == "llama.cpp" else ()
    side = SIDES[name](Path(model), threads, n_ctx, n_parallel, *more)
    side.prefill(min(600, n_ctx - MARGIN), 0)  # compiles, pages in, allocates
    side.decode(2, 32, 0)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        seconds = getattr(side, order.pop("op"))(**order)
        print(json.dumps({"seconds": seconds, "resident": _resident_bytes()}), flush=True)


def _resident_bytes() -> int:
    import psutil

    return psutil.Process().memory_info().rss


class Worker:
    def __init__(self, name: str, model: Path, slots: Path | None, *numbers: int) -> None:
        """numbers: threads, n_ctx of a sequence, sequences."""
        self.name = name
        command = [sys.executable, __file__, "--side", name, str(model), str(slots or ""), *map(str, numbers)]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (lives as long as the process)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self._answer()

    def ask(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        """The next JSON line; libraries may print others."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        self._log.seek(0)
        raise SystemExit(f"{self.name} ended early:\n{self._log.read()[-2000:]}")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


# --- the run ---


Rates = dict[str, dict[str, list[float]]]
"""Tokens per second by test and side, one a round."""


def start_sides(args: argparse.Namespace, precision: str, n_ctx: int, n_parallel: int) -> list[Worker]:
    dtype, gguf_type, reads, with_transformers = PRECISIONS[precision]
    folder = write_model(args.shape, args.models, dtype)
    gguf = write_gguf(folder, gguf_type)
    paths = {"elastikv": gguf if reads == "gguf" else folder, "llama.cpp": gguf, "transformers": folder}
    names = [name for name in args.sides if name != "transformers" or (with_transformers and n_parallel == 1)]
    if args.slots:
        args.slots.mkdir(parents=True, exist_ok=True)
    return [Worker(name, paths[name], args.slots, args.threads, n_ctx, n_parallel) for name in names]


def measure(args: argparse.Namespace, precision: str) -> Rates:
    """One sequence; sides alternate within a round."""
    workers = start_sides(args, precision, max([*args.depths, *args.prompts]) + MARGIN, 1)
    rates: Rates = {}
    try:
        for n in args.prompts:
            for round_ in range(args.rounds if n <= 1024 else 1):
                for worker in workers:
                    answer = worker.ask(op="prefill", n=n, salt=round_ + 1)
                    note(rates, precision, f"prefill {n}", worker, n, answer)
        for depth in args.depths:
            n = args.gen if depth < 8192 else max(4, args.gen // 8)
            for _ in range(args.rounds):
                for worker in workers:
                    # The last prompt measured may be this depth's: then it is still there and need not be computed.
                    answer = worker.ask(op="decode", n=n, depth=depth, salt=1 if depth > 1024 else 99)
                    note(rates, precision, f"decode @{depth}", worker, n, answer)
    finally:
        for worker in workers:
            worker.close()
    return rates


def measure_together(args: argparse.Namespace, precision: str) -> Rates:
    """Several sequences decoding at once: tokens per second of all of them."""
    depth = args.together_depth
    workers = start_sides(args, precision, depth + MARGIN, max(args.together))
    rates: Rates = {}
    try:
        for _ in range(args.rounds):
            for count in args.together:
                for worker in workers:
                    answer = worker.ask(op="decode", n=args.gen, depth=depth, salt=99, count=count)
                    note(rates, precision, f"{count} together @{depth}", worker, count * args.gen, answer)
    finally:
        for worker in workers:
            worker.close()
    return rates


def note(rates: Rates, precision: str, test: str, worker: Worker, n: int, answer: dict[str, Any]) -> None:
    rate = n / answer["seconds"]
    rates.setdefault(test, {}).setdefault(worker.name, []).append(rate)
    resident = f"resident {answer['resident'] / 2**20:.0f} MiB"
    print(f"  {precision} {test} {worker.name}: {rate:.2f} tok/s, {resident}", file=sys.stderr, flush=True)


def print_table(precision: str, rates: Rates, sides: list[str]) -> None:
    print(f"\n{precision:6} {'test':>14} " + " ".join(f"{side:>14}" for side in sides) + "   elastikv / others")
    for test, by_side in rates.items():
        medians = {side: statistics.median(values) for side, values in by_side.items()}
        cells = " ".join(f"{medians[side]:14.2f}" if side in medians else f"{'':>14}" for side in sides)
        ours = medians.get("elastikv")
        ratios = ", ".join(f"{ours / m:.2f} x {s}" for s, m in medians.items() if s != "elastikv" and ours)
        print(f"{'':6} {test:>14} {cells}   {ratios}")


def plot(results: dict[str, Rates], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(results), figsize=(4 * len(results), 3.5), squeeze=False)
    for axis, (precision, rates) in zip(axes[0], results.items(), strict=True):
        lines: dict[str, list[tuple[int, float]]] = {}
        for test, by_side in rates.items():
            if test.startswith("decode @"):
                for side, values in by_side.items():
                    lines.setdefault(side, []).append((int(test.split("@")[1]), statistics.median(values)))
        for side, points in lines.items():
            axis.loglog(*zip(*sorted(points), strict=True), marker="o", label=side)
        axis.set(title=precision, xlabel="tokens in the cache", ylabel="decode, tok/s")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def parse_args() -> argparse.Namespace:
    def lengths(text: str) -> list[int]:
        return [int(part) for part in text.split(",") if part]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["q8_0"])
    parser.add_argument("--prompts", type=lengths, default=[512])
    parser.add_argument("--depths", type=lengths, default=[32, 512, 4096])
    parser.add_argument("--together", type=lengths, default=[], help="sequences decoding at once, e.g. 1,8")
    parser.add_argument("--together-depth", type=int, default=1024)
    parser.add_argument("--gen", type=int, default=32, help="tokens decoded a round (an eighth of it from 8192 on)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "elastikv-models")
    parser.add_argument("--slots", type=Path, metavar="DIR", help="where llama.cpp keeps long contexts")
    parser.add_argument("--json", type=Path, help="write all rates here")
    parser.add_argument("--plot", type=Path, help="write a picture here")
    return parser.parse_args()


def main() -> None:
    if sys.argv[1:2] == ["--side"]:
        name, model, slots, *numbers = sys.argv[2:]
        serve_side(name, model, slots, *map(int, numbers))
        return
    args = parse_args()
    results = {}
    for precision in args.precision:
        results[precision] = measure(args, precision) if args.depths or args.prompts else {}
        if args.together:
            results[precision] |= measure_together(args, precision)
        print_table(precision, results[precision], args.sides)
        if args.json:
            args.json.write_text(json.dumps(results, indent=1))
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
