"""Nothing is measured here: only that every benchmark can be started."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import bench
from bench.decoding import append, tokens
from elastikv import LLM

ROOT = Path(bench.__file__).parents[1]


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "bench").glob("[!_]*.py")))
def test_every_module_is_imported_without_help(name):
    if name in ("server_peers", "soak"):
        pytest.importorskip("httpx")
    assert importlib.import_module(f"bench.{name}").__doc__


def test_a_command_starts_in_the_root_and_its_model_runs(tmp_path):
    """Also the types that only random blocks fill."""
    command = [sys.executable, "-m", "bench.shapes", "small", str(tmp_path), "--gguf", "q4_k_m"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with LLM(done.stdout.splitlines()[-1], n_ctx=64, n_threads=1) as llm:
        append(llm, tokens(16))
        assert llm.memory.seq_pos_max(0) == 15
