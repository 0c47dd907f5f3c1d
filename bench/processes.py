"""Measurements in processes of their own, and the bytes that a process holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil


def module_command(module: str, *arguments: object) -> list[str]:
    """``python -m module arguments``, by the interpreter that runs now."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def run_json(module: str, *arguments: object) -> Any:
    """Run a module and read the last line that it prints, as JSON."""
    done = subprocess.run(module_command(module, *arguments), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{module} {' '.join(map(str, arguments))} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def resident_bytes(pid: int | None = None) -> int:
    """Of this process, or of another."""
    return int(psutil.Process(pid).memory_info().rss)


def peak_resident_bytes() -> int:
    """The most that this process has held since it began or since ``reset_peak`` (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def reset_peak() -> None:
    """Let ``peak_resident_bytes`` begin anew from what is resident now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
