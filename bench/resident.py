"""Resident memory beside what it should be: packed weights, cells and the stated compute buffers.

    python -m bench.resident --precision q8_0 bf16 --depth 4096

Each precision is a process of its own. What Python, the libraries and the compiled kernels take is measured
first, on the demo model, and subtracted.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from bench.decoding import append, tokens
from bench.processes import resident_bytes, run_json
from bench.report import new_parser, write_json
from bench.shapes import PRECISIONS, add_shape_arguments, weight_bytes, write_gguf, write_model

if TYPE_CHECKING:
    from elastikv import LLM

COLUMNS = {"weights": 10, "cells": 10, "compute": 10, "sum": 10, "resident": 10, "libraries": 11}


def main() -> None:
    parser = new_parser(__doc__)
    add_shape_arguments(parser, "qwen3-0.6b")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--depth", type=int, default=4096)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.depth)))
        return
    print(f"{'MiB':8}" + "".join(f"{key:>{width}}" for key, width in COLUMNS.items()) + f" {'ratio':>6}")
    results = {}
    for name in args.precision:
        precision = PRECISIONS[name]
        folder = write_model(args.shape, args.models, precision.dtype)
        model = folder if precision.reads_folder else write_gguf(folder, precision.gguf_type)
        row = results[name] = run_json("bench.resident", "--measure", model, "--depth", args.depth)
        cells = "".join(f"{row[key] / 2**20:{width}.1f}" for key, width in COLUMNS.items())
        print(f"{name:8}{cells} {row['resident'] / row['sum']:6.3f}", flush=True)
    write_json(args.json, results)


def measure(model: Path, depth: int) -> dict[str, int]:
    """Bytes after a prompt of ``depth`` tokens and some decoding."""
    from elastikv import LLM

    def use(llm: LLM, n: int) -> None:
        llm.engine.warm_up()
        append(llm, tokens(n))
        for token in range(8):
            append(llm, [token])

    with LLM(n_ctx=1024) as demo:
        use(demo, 512)
    before = resident_bytes()
    with LLM(model, n_ctx=depth + 64, kv_budget="none") as llm:
        use(llm, depth)
        parts = {
            "weights": weight_bytes(model),
            "cells": llm.memory.stats().committed_bytes,
            "compute": llm.budget.compute_bytes,
        }
        resident = resident_bytes() - before
    return {**parts, "sum": sum(parts.values()), "resident": resident, "libraries": before}


if __name__ == "__main__":
    main()
