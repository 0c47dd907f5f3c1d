"""The sides of ``bench.peers``: each loads its model once, in a process of its own, and obeys orders.

A side prefills ``n`` tokens from empty, or decodes ``n`` tokens at a depth; both return seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.decoding import append, tokens
from bench.processes import module_command, resident_bytes

MARGIN = 1024
"""Cells beyond the deepest context: for what is decoded."""


class ElastikvSide:
    def __init__(self, model: Path, threads: int, n_ctx: int, n_parallel: int) -> None:
        from elastikv import LLM

        self.llm = LLM(model, n_ctx=n_ctx, n_threads=threads, kv_budget="none")
        self.llm.engine.warm_up()

    def prefill(self, n: int, salt: int, seq_id: int = 0) -> float:
        self.llm.memory.seq_rm(seq_id)
        started = time.perf_counter()
        append(self.llm, tokens(n, salt), seq_id)
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
        timings: dict[str, Any] = answer["timings"]
        return timings

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
        return float(n * timings["prompt_ms"] / timings["prompt_n"] / 1e3)

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
        return float(max(n * each["predicted_ms"] / (each["predicted_n"] - 1) / 1e3 for each in timings))


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
        print(json.dumps({"seconds": seconds, "resident": resident_bytes()}), flush=True)


class Worker:
    """A side's process, as the run sees it."""

    def __init__(self, name: str, model: Path, slots: Path | None, *numbers: int) -> None:
        """numbers: threads, n_ctx of a sequence, sequences."""
        self.name = name
        command = module_command("bench.sides", name, model, slots or "", *numbers)
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
                answer: dict[str, Any] = json.loads(line)
                return answer
        self._log.seek(0)
        raise SystemExit(f"{self.name} ended early:\n{self._log.read()[-2000:]}")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


if __name__ == "__main__":
    name, model, slots, *numbers = sys.argv[1:]
    serve_side(name, model, slots, *map(int, numbers))
