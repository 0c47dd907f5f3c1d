"""A side of ``bench.peers`` that is somebody's ``llama-bench``: llama.cpp built for this machine, or ik_llama.cpp."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any


class LlamaBench:
    """Asked like ``sides.Worker``, and runs the binary anew each time. Weights are read before its clock starts."""

    def __init__(self, name: str, binary: Path, model: Path, threads: int) -> None:
        self.name = name
        self._batched = [str(binary.parent / "llama-batched-bench"), "-m", str(model), "-t", str(threads), "-fa", "on"]
        self._command = [str(binary), "-m", str(model), "-t", str(threads), "-fa", "1", "-r", "1", "-o", "json"]
        help_text = subprocess.run([binary, "--help"], capture_output=True, text=True).stdout
        self._has_depth = "--n-depth" in help_text

    def ask(self, *, op: str, n: int, depth: int = 0, salt: int = 0, count: int = 1) -> dict[str, Any]:
        """``{"seconds": ..., "resident": ...}`` of a prompt of ``n`` tokens, or of ``n`` tokens decoded at a depth."""
        del salt  # its tokens are random
        if count != 1:
            return self._decode_together(n, depth, count)
        if op == "prefill":
            test = ["-p", n, "-n", 0]
        elif self._has_depth:
            test = ["-p", 0, "-n", n, "-d", depth]
        else:  # ik_llama.cpp measures what is generated behind a prompt
            test = ["-p", 0, "-n", 0, "-gp", f"{depth},{n}"]
        output, resident = _run([*self._command, *map(str, test)])
        report = json.loads(output[output.index("[") :])
        return {"seconds": n / report[-1]["avg_ts"], "resident": resident}

    def _decode_together(self, n: int, depth: int, count: int) -> dict[str, Any]:
        """By the llama-batched-bench in the same folder: ``n`` tokens of each of ``count`` sequences."""
        if not os.access(self._batched[0], os.X_OK):
            raise SystemExit(f"{self._batched[0]} is no program: build it too, or leave out --together")
        size = ["-c", count * (depth + n), "-npp", depth, "-ntg", n, "-npl", count, "--output-format", "jsonl"]
        output, resident = _run([*self._batched, *map(str, size)])
        report = next(json.loads(line) for line in output.splitlines() if line.startswith("{"))
        return {"seconds": report["t_tg"], "resident": resident}

    def close(self) -> None:
        """Nothing runs between two questions."""


def named_binary(text: str) -> tuple[str, Path]:
    """``NAME=PATH`` of ``--llama-bench``, or a path alone, which is called by its folder."""
    name, separator, path = text.rpartition("=")
    binary = Path(path)
    if not os.access(binary, os.X_OK) or binary.is_dir():
        raise argparse.ArgumentTypeError(f"{binary} is no program; give NAME=PATH of a llama-bench")
    return (name if separator else binary.resolve().parent.name), binary


def _run(command: list[str]) -> tuple[str, int]:
    """What it prints, and the most bytes that it held."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{log.read()[-2000:]}")
    return output, usage.ru_maxrss * 1024
