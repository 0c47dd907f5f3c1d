"""What the machine has left: physical memory, and the limit of the control group the process runs in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

# Version 1 writes "no limit" as a number near 2**63.
_UNLIMITED = 1 << 60


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """Bytes this process may ever use, and bytes it could still take without anything being killed."""

    total_bytes: int
    available_bytes: int


def read_machine_memory() -> MachineMemory:
    """Asks the operating system; about 0.1 ms, so once per growth and not per token."""
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    for group in read_cgroups():
        total = min(total, group.total_bytes)
        available = min(available, group.available_bytes)
    return MachineMemory(total, available)


def read_cgroups(proc: Path = Path("/proc"), root: Path = Path("/sys/fs/cgroup")) -> list[MachineMemory]:
    """The memory limits of the process's control group and of its ancestors, versions 1 and 2."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    limits: list[MachineMemory] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            limits += _walk(root, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            limits += _walk(root / "memory", path, *files)
    return limits


def _walk(mount: Path, path: str, limit_file: str, usage_file: str, reclaimable: str) -> list[MachineMemory]:
    """Every level counts. Inside a container the path may be the host's: then only the mount itself exists."""
    levels = [mount]
    for part in path.strip("/").split("/"):
        levels.append(levels[-1] / part)
    limits = []
    for level in levels:
        limit, usage = _read_int(level / limit_file), _read_int(level / usage_file)
        if limit is not None and usage is not None and limit < _UNLIMITED:
            # File pages that nobody uses are counted as usage, but are dropped before anything fails.
            usage -= _read_stat(level / "memory.stat", reclaimable)
            limits.append(MachineMemory(limit, max(limit - usage, 0)))
    return limits


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None


def _read_stat(path: Path, key: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    values = dict(line.split(maxsplit=1) for line in lines if " " in line)
    return int(values.get(key, 0))
