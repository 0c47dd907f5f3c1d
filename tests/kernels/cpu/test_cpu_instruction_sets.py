"""The tests of the cpu kernels again, compiled for less than this processor has."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.instruction_sets import PROPERTY, SETS, compile_for, ours, summary

HERE = Path(__file__).parent
OTHERS = [name for name in SETS if name not in ("SSE4.2", ours())]
"""Without AVX2, torch serves."""

Run = Callable[..., None]


@pytest.fixture
def run(pytestconfig: pytest.Config, record_property: Callable[[str, object], None]) -> Run:
    def run_tests(name: str, *selection: str) -> None:
        """Kernels are kept between test runs."""
        cache = pytestconfig.cache.mkdir("kernels-" + name.lower().replace(" ", "-"))  # type: ignore[union-attr]
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *selection]
        ended = subprocess.run(command, env=compile_for(name, cache), cwd=HERE, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-1000:]
        assert f"{name} (this processor's)" in ended.stdout
        record_property(PROPERTY, name)

    return run_tests


@pytest.mark.parametrize("name", [name for name in OTHERS if name == "AVX2"])
def test_products(name: str, run: Run) -> None:
    """What most desktops have; compiling for all sets is for the slow test below."""
    chosen = "columns or large or (as and here and (7 or 1) and (q8_0 or q4_k))"
    run(name, "matmul/test_cpu_linear.py", "matmul/test_cpu_gemm_int8.py", "-k", chosen)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_all_kernels(name: str, run: Run) -> None:
    run(name, "attention", "matmul", "recurrent", "simd/test_cpu_math.py", "test_cpu_norms.py")


def test_the_line_at_the_end_names_what_was_tested_and_what_was_not() -> None:
    assert summary({"AVX2"}).startswith("instruction sets tested: AVX2")
    assert summary({"AVX2"}).endswith("; not tested: SSE4.2, AVX-512, AVX-512 VNNI, AVX-512 BF16")
    assert f"{ours()} (this processor's)" in summary({ours()})
    assert "not tested" not in summary(set(SETS))
