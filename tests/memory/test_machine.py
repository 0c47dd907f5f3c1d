from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from elastikv.memory.machine import MachineMemory, read_cgroups, read_machine_memory


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_version_2_counts_every_level_and_forgives_file_pages(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/user/job\n")
    root = tmp_path / "cg"
    write(root / "user/memory.max", "5000\n")
    write(root / "user/memory.current", "1000\n")
    write(root / "user/memory.stat", "anon 1\ninactive_file 200\n")
    write(root / "user/job/memory.max", "max\n")
    write(root / "user/job/memory.current", "1000\n")
    assert read_cgroups(tmp_path / "proc", root) == [MachineMemory(5000, 4200)]


def test_version_1_inside_a_container_finds_the_mount(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "9:cpu:/\n4:memory:/docker/0123\n")
    root = tmp_path / "cg"
    write(root / "memory/memory.limit_in_bytes", "3000\n")
    write(root / "memory/memory.usage_in_bytes", "3500\n")
    assert read_cgroups(tmp_path / "proc", root) == [MachineMemory(3000, 0)]


def test_version_1_without_a_limit(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "4:memory:/\n")
    write(tmp_path / "cg/memory/memory.limit_in_bytes", "9223372036854771712\n")
    write(tmp_path / "cg/memory/memory.usage_in_bytes", "1\n")
    assert read_cgroups(tmp_path / "proc", tmp_path / "cg") == []


def test_no_control_groups(tmp_path: Path) -> None:
    assert read_cgroups(tmp_path / "proc", tmp_path / "cg") == []


def test_the_smallest_limit_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elastikv.memory.machine.read_cgroups", lambda: [MachineMemory(1 << 20, 1 << 10)])
    assert read_machine_memory() == MachineMemory(1 << 20, 1 << 10)
    monkeypatch.setattr("elastikv.memory.machine.read_cgroups", list)
    assert read_machine_memory().total_bytes == psutil.virtual_memory().total
