"""Compilation: kept on disk, stale when any source changes, and no failure where nothing can be written."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from numba import prange
from numba.core.caching import FunctionCache

from elastikv.kernels.cpu import jit

PROGRAM = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
import torch
from elastikv.kernels.cpu import norms
gate_up, out = torch.ones(1, 32), torch.full((1, 16), torch.nan)
norms.silu_mul(gate_up.data_ptr(), 128, 1, 16, out.data_ptr())
assert not out.isnan().any()
print("hits", sum(norms.silu_mul.stats.cache_hits.values()))
"""


LAYERS = """
import torch
from elastikv.kernels.cpu import CpuKernels
from elastikv.kernels.base import ForwardPass
from elastikv.kernels.weights import LinearWeights, MlpWeights, Norms
kernels, weight = CpuKernels(), torch.ones(64, 32, dtype=torch.bfloat16)
wide, x = torch.ones(2, 64), torch.ones(2, 32)
for n in (1, 2):
    kernels.linear(x[:n], weight, None, wide[:n])
if {fused}:
    class Buffers:
        def view(self, name, shape): return torch.empty(shape)
    matrices = [LinearWeights.of([(rows, None)]) for rows in (weight, weight[:32])]
    mlp = kernels.mlp_layer(MlpWeights(Norms(torch.ones(32), 1e-6), *matrices))
    delta, residual = torch.ones(2, 32), torch.zeros(2, 32)
    mlp(delta, residual, ForwardPass(None, None, None, Buffers(), dict()))
    assert bool((residual == 1).all()) and bool((delta > 1).all())
"""


def test_what_an_older_source_was_compiled_to_is_never_loaded(tmp_path: Path) -> None:
    older, newer = (jit._Files(str(tmp_path), "kernel", stamp * 20) for stamp in "ab")
    older.save("signature", "old code")
    assert older.load("signature") == "old code"
    newer._save_index({"signature": newer._data_name(1)})  # what a process that is killed here leaves
    assert newer.load("signature") is None
    newer._save_index({})
    newer.save("signature", "new code")
    assert newer.load("signature") == "new code"
    assert len(list(tmp_path.glob("*.nbc"))) == 1


def run_with_cache(folder: Path, code: str = PROGRAM) -> str:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder)}
    program = [sys.executable, "-c", code]
    return subprocess.run(program, env=environment, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.slow
def test_the_second_process_compiles_nothing(tmp_path: Path) -> None:
    first, second = run_with_cache(tmp_path), run_with_cache(tmp_path)
    assert first.count("compiling CPU kernels") == 1
    assert first.endswith("hits 0\n")
    assert second == "hits 1\n"


ONLY_COMPILED = """
import torch
from elastikv.kernels.cpu import jit, norms
gate_up, out = torch.ones(1, 32), torch.full((1, 16), torch.nan)
arguments = gate_up.data_ptr(), 128, 1, 16, out.data_ptr()
try:
    with jit.only_compiled():
        norms.silu_mul(*arguments)
    print("served")
except jit.NotCompiled:
    assert out.isnan().all()
    norms.silu_mul(*arguments)
    print("compiled")
assert not out.isnan().any()
with jit.only_compiled():
    norms.silu_mul(*arguments)
assert jit.is_kept(norms.silu_mul)
from elastikv.kernels.cpu import report
assert report.compiled().n_files == 1
assert report.compiled().n_bytes > 1000
assert jit.kept_in(norms.silu_mul) in report.compiled().folders
"""


@pytest.mark.slow
def test_nothing_is_compiled_where_it_must_not_be(tmp_path: Path) -> None:
    """A kernel that is on disk serves, and one that was refused can be compiled afterwards."""
    assert run_with_cache(tmp_path, ONLY_COMPILED).splitlines()[-1] == "compiled"
    assert run_with_cache(tmp_path, ONLY_COMPILED) == "served\n"


def test_one_process_at_a_time_keeps_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of what is kept is read, and written with one entry more: two at once would lose one, or mix them up."""
    saved = []

    def save(self: FunctionCache, signature: object, data: object) -> None:
        folder = os.open(self.cache_path, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(folder)
        saved.append(data)

    monkeypatch.setattr(FunctionCache, "save_overload", save)
    cache = jit._PackageCache(sum_below)
    cache.save_overload(None, 1)
    cache.save_overload(None, 2)
    assert saved == [1, 2]


@pytest.mark.slow
def test_a_layer_is_compiled_from_kernels_that_were_kept(tmp_path: Path) -> None:
    """Their machine instructions are read as text once more, in a process that has written none."""
    run_with_cache(tmp_path, LAYERS.format(fused=False))
    run_with_cache(tmp_path, LAYERS.format(fused=True))


def test_a_change_of_any_source_makes_kernels_stale(tmp_path: Path) -> None:
    """Also of one in a folder of the package, and of where it is."""
    assert jit._PackageCache(run_with_cache)._impl.locator.get_source_stamp() == jit.sources_digest()
    package = tmp_path / "cpu"
    shutil.copytree(Path(jit.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    stamps = [jit.sources_digest.__wrapped__(package)]
    assert stamps == [jit.sources_digest()]
    for source in (package / "norms.py", package / "simd" / "memory.py", package / "formats" / "q8_0.py"):
        source.write_text(source.read_text() + "#")
        stamps.append(jit.sources_digest.__wrapped__(package))
    (package / "simd" / "memory.py").rename(package / "simd" / "memories.py")
    stamps.append(jit.sources_digest.__wrapped__(package))
    assert len(set(stamps)) == len(stamps)


def test_a_machine_where_nothing_can_be_written(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(jit._PackageCacheImpl, "_locator_classes", [])
    with caplog.at_level(logging.INFO):
        one_more = jit.inlined(lambda x: x + 1)
        add = jit.kernel(sum_below)
    assert one_more(1) == 2
    assert add(4) == 6
    assert not jit.is_kept(add)
    assert "sum_below" in caplog.text


def sum_below(n: int) -> int:
    total = 0
    for i in prange(n):
        total += i
    return total
