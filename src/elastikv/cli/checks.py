"""What ``elastikv doctor`` looks at, each section by itself: facts, what would make it faster, and what is broken."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from typing_extensions import override

from elastikv.errors import NotInstalled, format_bytes

_MUCH_ADDRESS_SPACE = 1 << 38
"""More than the caches of a few long sessions reserve."""

_PACKAGES = (
    "elastikv",
    "torch",
    "transformers",
    "tokenizers",
    "numba",
    "llguidance",
    "gguf",
    "huggingface-hub",
    "fastapi",
)
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")


class Bytes(int):
    """A number of bytes: JSON has it as it is, people as ``12.5 GiB``."""

    @override
    def __str__(self) -> str:
        return format_bytes(self)


Fact = str | int | float | None


@dataclass(slots=True)
class Section:
    """One part of the report."""

    facts: dict[str, Fact] = field(default_factory=dict)
    advice: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def processor() -> Section:
    """What it can, and which instructions compute what."""
    from elastikv.kernels import select_kernels

    if select_kernels().name != "cpu":
        return Section(
            {"machine": platform.machine(), "kernels": "plain torch"}, ["the cpu kernels cannot run here: plain torch"]
        )
    from elastikv.kernels.cpu import report

    facts = {"machine": platform.machine(), "features": " ".join(report.processor_features())}
    return Section({**facts, **report.instructions()})


def compiled_kernels() -> Section:
    """What is on disk of them."""
    from elastikv.kernels import select_kernels

    if select_kernels().name != "cpu":
        return Section()
    from elastikv.kernels.cpu import report

    return of_compiled(*report.compiled())


def of_compiled(folders: Sequence[Path], n_files: int, n_bytes: int) -> Section:
    """The same, of what ``report.compiled`` has found."""
    if not folders:
        return Section(
            {"folder": None},
            ["no folder can be written for compiled kernels, so every process compiles: set NUMBA_CACHE_DIR to one"],
        )
    section = Section({"folder": os.path.commonpath(folders), "files": n_files, "size": Bytes(n_bytes)})
    if not n_files:
        section.advice.append(
            "no kernel is compiled yet, and plain torch serves until then; --kernels cpu compiles first"
        )
    return section


def memory() -> Section:
    """What is left, and whether address space may be reserved beyond it."""
    import psutil

    from elastikv.memory import Budget
    from elastikv.memory.machine import read_machine_memory
    from elastikv.memory.storage import pages

    machine, swap = read_machine_memory(), psutil.swap_memory()
    section = Section(
        {
            "total": Bytes(machine.total_bytes),
            "of the control group": machine.total_bytes < psutil.virtual_memory().total,
            "available": Bytes(machine.available_bytes),
            "--kv-budget auto": Bytes(Budget.parse("auto").left()),
            "swap": Bytes(swap.total),
            "swap in use": Bytes(swap.used),
        }
    )
    if pages.supported():
        huge = _chosen(_read(_HUGE_PAGES))
        reserved = can_reserve(_MUCH_ADDRESS_SPACE)
        section.facts |= {
            "huge pages": huge,
            "overcommit": _read(_OVERCOMMIT),
            "much address space can be reserved": reserved,
        }
        section.advice += of_pages(reserved, huge, _read(_OVERCOMMIT), _address_limit())
    return section


def of_pages(can_reserve: bool, huge_pages: str, overcommit: str, address_limit: int | None) -> list[str]:
    """What would help the mmap storage. address_limit: of the process, bytes."""
    advice = []
    if not can_reserve:
        causes = []
        if address_limit is not None:
            causes.append(f"ulimit -v is {format_bytes(address_limit)}: raise it")
        if overcommit == "2":
            causes.append("vm.overcommit_memory is 2: 0 or 1 lets address space be reserved")
        why = "; ".join(causes) or "the system refuses it"
        advice.append(f"long contexts get the copy storage, since address space is short ({why})")
    if huge_pages == "never":
        advice.append(f"huge pages are off, which large caches gain by: echo madvise > {_HUGE_PAGES}")
    return advice


def can_reserve(n_bytes: int) -> bool:
    """Whether so much address space is to be had."""
    from elastikv.memory.storage import pages

    try:
        pages.Region(n_bytes)
    except MemoryError:
        return False
    return True


def threads() -> Section:
    """How many compute, on how many cores."""
    import psutil
    import torch

    n_threads, n_cores = torch.get_num_threads(), usable_cores()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    variables = {name: value for name, value in sorted(os.environ.items()) if name.startswith(("OMP_", "GOMP_"))}
    return Section(
        {
            "threads": n_threads,
            "usable cores": n_cores,
            "physical cores": psutil.cpu_count(logical=False),
            "load": round(load, 1),
            **variables,
        },
        of_threads(n_threads, n_cores, load, variables),
    )


def of_threads(n_threads: int, n_cores: int, load: float, variables: Mapping[str, str]) -> list[str]:
    """What would let them wait less for each other."""
    advice = []
    if n_threads > n_cores:
        advice.append(f"{n_threads} threads share {n_cores} cores: give -t {n_cores}, or OMP_NUM_THREADS={n_cores}")
    if load > n_cores and variables.get("OMP_WAIT_POLICY", "").lower() != "passive":
        advice.append(
            f"other processes want the cores (load {load:.1f} on {n_cores}), and threads that wait keep theirs busy: "
            "set OMP_WAIT_POLICY=passive"
        )
    return advice


def usable_cores(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may run on, within the quota of its container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read(quota_file).partition(" ")
    return min(allowed, max(-(-int(quota) // int(period)), 1)) if quota.isdigit() else allowed


def software() -> Section:
    """Versions, and what is not installed."""
    import torch

    section = Section({"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}})
    if torch.version.cuda is not None or torch.version.hip is not None:
        section.advice.append("PyTorch is a build for GPUs; elastikv's kernels run on the CPU: its CPU build is enough")
    try:
        section.facts["llama-cpp-python"] = version("llama-cpp-python")
    except PackageNotFoundError:
        section.facts["llama-cpp-python"] = None
        return section
    from elastikv.runtimes.llama_cpp.library import has_device

    try:
        section.facts["llama.cpp has a device"] = has_device()
    except NotInstalled as error:
        section.broken.append(str(error))
    return section


def hub() -> Section:
    """Where models of the Hugging Face Hub are kept."""
    from huggingface_hub import constants, get_token

    from elastikv.hub import cache

    return Section(
        {
            "cache": str(cache.folder()),
            "models": len(cache.models()),
            "endpoint": constants.ENDPOINT,
            "offline": constants.HF_HUB_OFFLINE,
            "token": get_token() is not None,
        }
    )


def demo_model() -> Section:
    """Whether the whole way from a prompt to a text works, with plain torch."""
    from elastikv import LLM, SamplingParams

    with LLM(n_ctx=64, kernels="reference") as llm:
        text = llm.generate("def ", SamplingParams(temperature=0, max_tokens=4))[0].text
    return Section({"goes on from 'def ' with": text})


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _chosen(choices: str) -> str:
    """``madvise`` of ``always [madvise] never``."""
    return choices.partition("[")[2].partition("]")[0]


def _address_limit() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


SECTIONS = {
    "processor": processor,
    "compiled kernels": compiled_kernels,
    "threads": threads,
    "memory": memory,
    "software": software,
    "hub": hub,
    "demo model": demo_model,
}
