"""Instruction sets that the cpu kernels are written for, and how to compile for less than this processor has.

A test says which one it ran with ``record_property(PROPERTY, name)``; the end of a test run tells them.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import llvmlite.binding
import pytest

PROPERTY = "instruction set"

_SSE4 = "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt"
_AVX2 = f"{_SSE4},+avx,+avx2,+fma,+bmi,+bmi2,+f16c,+lzcnt,+movbe"
_AVX512 = f"{_AVX2},+avx512f,+avx512cd,+avx512bw,+avx512dq,+avx512vl"

# Name -> a processor that has this and no more, and its features, as LLVM calls them.
SETS = {
    "SSE4.2": ("nehalem", _SSE4),
    "AVX2": ("haswell", _AVX2),
    "AVX-512": ("skylake-avx512", _AVX512),
    "AVX-512 VNNI": ("cascadelake", f"{_AVX512},+avx512vnni"),
    "AVX-512 BF16": ("cooperlake", f"{_AVX512},+avx512vnni,+avx512bf16"),
}


def ours() -> str:
    """The set that kernels are compiled for in this process."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return platform.machine()
    from elastikv.kernels.cpu.simd.features import has  # most test runs need no kernels

    newest = {"AVX-512 BF16": "avx512bf16", "AVX-512 VNNI": "avx512vnni", "AVX-512": "avx512bw", "AVX2": "avx2"}
    return next((name for name, feature in newest.items() if has(feature)), "SSE4.2")


def compile_for(name: str, cache: Path | None = None) -> dict[str, str]:
    """The environment of a process that compiles for this set. Skips the test where this processor lacks it."""
    processor, features = SETS[name]
    available = llvmlite.binding.get_host_cpu_features()
    if not all(available.get(feature[1:], False) for feature in features.split(",")):
        pytest.skip(f"this processor lacks {name}")
    asked = {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": features}
    return os.environ | asked | ({"NUMBA_CACHE_DIR": str(cache)} if cache else {})


def summary(tested: set[str]) -> str:
    """One line about the sets that passed tests ran with."""
    names = [f"{name} (this processor's)" if name == ours() else name for name in [*SETS, ours()] if name in tested]
    missed = [name for name in SETS if name not in tested]
    line = f"instruction sets tested: {', '.join(dict.fromkeys(names)) or 'none'}"
    return f"{line}; not tested: {', '.join(missed)}" if missed else line
