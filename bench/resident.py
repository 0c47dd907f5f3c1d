"""Resident memory beside what it should be: packed weights, cells and the stated compute buffers.

    python bench/resident.py --precision q8_0 bf16 --depth 4096

Each precision is a process of its own. What Python, the libraries and the compiled kernels take is measured
first, on the demo model, and subtracted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from peers import PRECISIONS, tokens
from shapes import SHAPES, write_gguf, write_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--depth", type=int, default=4096)
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "elastikv-models")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.depth)))
        return
    print(f"{'MiB':8}" + "".join(f"{key:>{width}}" for key, width in COLUMNS.items()) + f" {'ratio':>6}")
    results = {}
    for precision in args.precision:
        dtype, gguf_type, reads, _ = PRECISIONS[precision]
        folder = write_model(args.shape, args.models, dtype)
        model = write_gguf(folder, gguf_type) if reads == "gguf" else folder
        command = [sys.executable, __file__, "--measure", str(model), "--depth", str(args.depth)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        row = results[precision] = json.loads(done.stdout.splitlines()[-1])
        cells = "".join(f"{row[key] / 2**20:{width}.1f}" for key, width in COLUMNS.items())
        print(f"{precision:8}{cells} {row['resident'] / row['sum']:6.3f}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


COLUMNS = {"weights": 10, "cells": 10, "compute": 10, "sum": 10, "resident": 10, "libraries": 11}


def measure(model: Path, depth: int) -> dict[str, int]:
    """Bytes after a prompt of ``depth`` tokens and some decoding."""
    from elastikv import LLM
    from elastikv.batch import Batch, SeqTokens

    def use(llm: LLM, n: int) -> None:
        for start in range(0, n, llm.n_batch):
            llm.engine.decode(Batch([SeqTokens(0, tokens(n, 1)[start : start + llm.n_batch])]))
        for token in range(8):
            llm.engine.decode(Batch([SeqTokens(0, [token])]))

    with LLM(n_ctx=1024) as demo:
        use(demo, 512)
    before = resident_bytes()
    with LLM(model, n_ctx=depth + 64, kv_budget="none") as llm:
        use(llm, depth)
        parts = {
            "weights": sum(path.stat().st_size for path in weight_files(model)),
            "cells": llm.memory.stats().committed_bytes,
            "compute": llm.budget.compute_bytes,
        }
        resident = resident_bytes() - before
    return {**parts, "sum": sum(parts.values()), "resident": resident, "libraries": before}


def weight_files(model: Path) -> list[Path]:
    return [model] if model.is_file() else sorted(model.glob("*.safetensors"))


def resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    main()
