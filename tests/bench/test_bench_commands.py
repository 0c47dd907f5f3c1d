"""Nothing is measured here: only that every benchmark can be started."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import bench
from bench.decoding import append, tokens
from bench.llama_bench import LlamaBench, named_binary
from elastikv import LLM

ROOT = Path(bench.__file__).parents[1]


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "bench").glob("[!_]*.py")))
def test_every_module_is_imported_without_help(name):
    if name in ("server_peers", "soak"):
        pytest.importorskip("httpx")
    assert importlib.import_module(f"bench.{name}").__doc__


@pytest.mark.slow
def test_a_command_starts_in_the_root_and_its_model_runs(tmp_path):
    """Also the types that only random blocks fill."""
    command = [sys.executable, "-m", "bench.shapes", "small", str(tmp_path), "--gguf", "q4_k_m"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with LLM(done.stdout.splitlines()[-1], n_ctx=64, n_threads=1, kernels="reference") as llm:
        append(llm, tokens(16))
        assert llm.memory.seq_pos_max(0) == 15


LLAMA_BENCH = """#!{python}
import json, sys
if "--help" in sys.argv:
    print("{help}")
else:
    with open("{log}", "a") as log:
        print(*sys.argv[1:], file=log)
    print("a line that is no JSON")
    print(json.dumps([{{"avg_ts": 10.0}}, {{"avg_ts": 4.0}}]))
"""


@pytest.mark.parametrize(("flag", "at_a_depth"), [("-d, --n-depth <n>", "-p 0 -n 8 -d 512"), ("-gp", "-gp 512,8")])
def test_a_llama_bench_is_a_side(tmp_path, flag, at_a_depth):
    binary, log = tmp_path / "llama-bench", tmp_path / "log"
    binary.write_text(LLAMA_BENCH.format(python=sys.executable, help=flag, log=log))
    binary.chmod(0o755)
    name, path = named_binary(f"native={binary}")
    side = LlamaBench(name, path, Path("model.gguf"), 2)
    answers = [side.ask(op="prefill", n=64, salt=1), side.ask(op="decode", n=8, depth=512, salt=1)]
    assert [answer["seconds"] for answer in answers] == [16.0, 2.0]
    assert all(answer["resident"] > 2**20 for answer in answers)
    prefill, decode = log.read_text().splitlines()
    assert prefill.endswith("-p 64 -n 0")
    assert decode.endswith(at_a_depth)


def test_what_is_no_llama_bench_is_refused(tmp_path):
    with pytest.raises(argparse.ArgumentTypeError, match="NAME=PATH"):
        named_binary(f"ik={tmp_path}")
    broken = tmp_path / "llama-bench"
    broken.write_text("#!/bin/sh\necho no such file >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(SystemExit, match="no such file"):
        LlamaBench("broken", broken, Path("model.gguf"), 1).ask(op="prefill", n=8)
