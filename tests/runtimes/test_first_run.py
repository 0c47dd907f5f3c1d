"""The first run: plain torch serves, kernels are compiled beside, and what has been begun goes on with them."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.forward import random_ids
from support.tiny_models import N_VOCAB, tiny_model

from elastikv.batch import Batch, SeqTokens
from elastikv.kernels import select_kernels
from elastikv.kernels.base import Sublayer
from elastikv.kernels.cpu.jit import NotCompiled
from elastikv.memory import Budget, MemoryOptions
from elastikv.memory.machine import MachineMemory
from elastikv.models import LoadedModel, load_model
from elastikv.models.decoder import Decoder
from elastikv.runtimes import find, first_run, own
from elastikv.runtimes.base import RuntimeOptions
from elastikv.runtimes.first_run import Compiler, CompilerFailed, FirstRun
from elastikv.runtimes.torch_runtime import TorchRuntime, open_runtime

N_TOKENS = 12
PROMPT = random_ids(30, N_VOCAB)


class FakeCompiler:
    """Compiles nothing, and is done when the test says so."""

    def __init__(self, task: bytes) -> None:
        self.task = task
        self.done = self.closed = False
        self.failure = ""

    def is_done(self) -> bool:
        return self.done

    def seconds(self) -> float:
        if self.failure:
            raise CompilerFailed(self.failure)
        return 3.0

    def wait(self) -> None:
        self.done = True

    def close(self) -> None:
        self.closed = True


def options(kernels: str = "auto") -> RuntimeOptions:
    memory = MemoryOptions(256, k_type="f32", v_type="f32")
    return RuntimeOptions(memory=memory, budget=Budget(), n_ubatch=16, kernels=kernels)


def load(arch: str, folder: Path, kernels: str) -> LoadedModel:
    return load_model(tiny_model(arch, folder), kernels=select_kernels(kernels))


def open_first_run(arch: str, folder: Path) -> FirstRun:
    loaded = load(arch, folder, "cpu")
    make = partial(FirstRun, cells=("f32", "f32"), start=FakeCompiler)
    return open_runtime(loaded.model, loaded.tokenizer, options(), torch.set_num_threads, make)


def greedy(runtime: TorchRuntime) -> Iterator[int]:
    """The greedy continuation of the prompt, a token a step."""
    ids = PROMPT
    while True:
        token = int(runtime.decode(Batch([SeqTokens(0, ids)])).argmax())
        yield token
        ids = [token]


def expected(arch: str, folder: Path, kernels: str) -> list[int]:
    loaded = load(arch, folder, kernels)
    runtime = open_runtime(loaded.model, loaded.tokenizer, options(), torch.set_num_threads)
    return list(itertools.islice(greedy(runtime), N_TOKENS))


@pytest.fixture
def nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def refuse() -> Iterator[None]:
        raise NotCompiled
        yield

    monkeypatch.setattr(first_run, "only_compiled", refuse)


@pytest.mark.usefixtures("nothing_is_compiled")
@pytest.mark.parametrize("failure", ["", "no space left on device"])
@pytest.mark.parametrize("arch", ["qwen3", "qwen3_5", "qwen3_moe"])
def test_a_switch_in_the_middle_changes_no_token(
    arch: str, failure: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    runtime = open_first_run(arch, tmp_path)
    compiled_model, tokens = runtime.model, greedy(runtime)
    begun = [next(tokens) for _ in range(N_TOKENS // 2)]
    compiler = runtime._compiler
    assert isinstance(compiler, FakeCompiler)
    assert runtime.model is not compiled_model
    assert "plain torch serves until then" in caplog.text
    compiler.done, compiler.failure = True, failure
    got = begun + [next(tokens) for _ in range(N_TOKENS // 2)]
    assert runtime.model is compiled_model
    assert (failure or "serve from now on (compiled in 3 s)") in caplog.text
    assert got == expected(arch, tmp_path, "reference") == expected(arch, tmp_path, "cpu")
    assert len([record for record in caplog.records if record.name == first_run.__name__]) == 2
    runtime.close()


@pytest.mark.parametrize("arch", ["qwen3", "qwen3_5"])
def test_a_kernel_that_turns_out_not_to_be_compiled_leaves_no_trace(
    arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the last layer, when all before it have changed cells and states, of the second ubatch of a prompt."""
    runtime = open_first_run(arch, tmp_path)
    last = runtime.model._blocks[-1]
    layer = type(last.feed_forward)
    calls = iter(range(100))

    def fail_once(self: Sublayer, *arguments: Any) -> None:
        if self is last.feed_forward and next(calls) == 0:
            raise NotCompiled
        compute(self, *arguments)

    compute = layer.__call__
    monkeypatch.setattr(layer, "__call__", fail_once)
    tokens = greedy(runtime)
    begun = [next(tokens) for _ in range(N_TOKENS // 2)]
    runtime.memory.check()
    assert isinstance(runtime._compiler, FakeCompiler)
    runtime._compiler.done = True
    assert begun + [next(tokens) for _ in range(N_TOKENS // 2)] == expected(arch, tmp_path, "reference")
    runtime.close()


@pytest.mark.usefixtures("nothing_is_compiled")
@pytest.mark.parametrize("lacks", ["a Python", "memory"])
def test_where_no_process_can_be_started_kernels_are_compiled_here(
    lacks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if lacks == "memory":
        monkeypatch.setattr(first_run, "read_machine_memory", lambda: MachineMemory(1 << 30, 1 << 20))
    else:
        monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    runtime = open_first_run("qwen3", tmp_path)
    runtime._start = Compiler
    compiled_model = runtime.model
    assert list(itertools.islice(greedy(runtime), 3)) == expected("qwen3", tmp_path, "cpu")[:3]
    assert runtime.model is compiled_model
    assert "no process can be started" in caplog.text
    runtime.close()


@pytest.mark.usefixtures("nothing_is_compiled")
@pytest.mark.parametrize("arch", ["qwen3", "qwen3_5"])
def test_a_long_prompt_goes_on_with_the_kernels(arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its second ubatch, within one call."""
    runtime, served = open_first_run(arch, tmp_path), []
    compiled_model, forward = runtime.model, type(runtime.model).forward

    def then_finish(self: Decoder, *arguments: Any) -> torch.Tensor:
        served.append(self is compiled_model)
        logits = forward(self, *arguments)
        if runtime._compiler is not None:
            runtime._compiler.done = True
        return logits

    monkeypatch.setattr(type(runtime.model), "forward", then_finish)
    tokens = greedy(runtime)
    got = [next(tokens)]
    assert served == [False, True]
    monkeypatch.setattr(type(runtime.model), "forward", forward)
    assert got + list(itertools.islice(tokens, N_TOKENS - 1)) == expected(arch, tmp_path, "reference")
    runtime.close()


@pytest.mark.usefixtures("nothing_is_compiled")
def test_plain_torch_leaves_a_core_to_the_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime, n_threads = open_first_run("qwen3", tmp_path), []
    forward = type(runtime.model).forward

    def count(*arguments: Any) -> torch.Tensor:
        n_threads.append(torch.get_num_threads())
        return forward(*arguments)

    monkeypatch.setattr(type(runtime.model), "forward", count)
    torch.set_num_threads(2)
    try:
        tokens = greedy(runtime)
        next(tokens)
        assert set(n_threads) == {1}
        assert torch.get_num_threads() == 2
        runtime.warm_up()
        n_threads.clear()
        next(tokens)
        assert n_threads == [2]
    finally:
        torch.set_num_threads(1)
    runtime.close()


@pytest.mark.usefixtures("nothing_is_compiled")
def test_who_measures_waits_for_the_compiler(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    runtime = open_first_run("qwen3", tmp_path)
    compiled_model = runtime.model
    runtime.look_ahead(select_kernels("cpu"))
    runtime.warm_up()
    assert runtime.model is compiled_model
    assert "serve from now on" in caplog.text
    runtime.decode(Batch([SeqTokens(0, PROMPT)]))
    assert runtime.model is compiled_model
    runtime.close()


@pytest.mark.usefixtures("nothing_is_compiled")
def test_closing_ends_the_compiler(tmp_path: Path) -> None:
    runtime = open_first_run("qwen3", tmp_path)
    runtime.look_ahead(select_kernels("cpu"))
    compiler = runtime._compiler
    assert isinstance(compiler, FakeCompiler)
    runtime.close()
    assert compiler.closed


def test_nothing_is_started_where_kernels_are_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_model("qwen3", tmp_path)
    monkeypatch.setattr(own, "_can_compile_beside", lambda: True)
    monkeypatch.setattr(first_run, "Compiler", lambda task: pytest.fail("a process was started"))
    by_name = find(folder).load(options("cpu"))
    assert type(by_name) is TorchRuntime
    by_name.decode(Batch([SeqTokens(0, PROMPT)]))
    by_name.decode(Batch([SeqTokens(0, [1])]))
    runtime = find(folder).load(options())
    assert isinstance(runtime, FirstRun)
    for ids in (PROMPT, [1]):
        runtime.decode(Batch([SeqTokens(0, ids)]))
    runtime.close()
    by_name.close()


def test_kernels_that_cannot_be_kept_are_compiled_here(monkeypatch: pytest.MonkeyPatch) -> None:
    assert first_run.can_compile_beside() == first_run.is_kept(first_run.norms.rms_norm)
    monkeypatch.setattr(first_run, "is_kept", lambda kernel: False)
    assert not first_run.can_compile_beside()
    monkeypatch.setattr(first_run, "is_kept", lambda kernel: True)
    assert first_run.can_compile_beside()
    monkeypatch.setattr(sys, "frozen", True, raising=False)  # sys.executable is no Python then
    assert not first_run.can_compile_beside()


# The process


def test_a_compiler_that_fails_says_why() -> None:
    compiler = Compiler(b"no pickle")
    compiler._process.wait(60)
    assert compiler.is_done()
    with pytest.raises(CompilerFailed, match=r"pickle.*exit status 1"):
        compiler.seconds()


def test_closing_a_compiler_ends_its_process() -> None:
    compiler = Compiler(b"", "support.endless_compiler")
    assert not compiler.is_done()
    compiler.close()
    assert compiler._process.returncode == -signal.SIGKILL
    compiler.close()


PARENT = """
import os, time
from elastikv.runtimes.first_run import Compiler
compiler = Compiler(b"", "support.endless_compiler")
while not os.fstat(compiler._said.fileno()).st_size:
    time.sleep(0.02)
print(compiler._process.pid, flush=True)
time.sleep(60)
"""


def test_a_compiler_ends_with_a_parent_that_is_killed() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    os.kill(child, 0)  # it lives
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while _lives(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _lives(child)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


WHOLE = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
import torch
from elastikv import LLM, SamplingParams
torch.set_num_threads(1)
llm = LLM(sys.argv[1], kv_dtype="f32", n_ctx=100000, attention_precision=sys.argv[2])
wait = "--wait" in sys.argv
for delta in llm.stream([5] * 30, SamplingParams(max_tokens=90000, temperature=0, ignore_eos=True)):
    if type(llm.engine).__name__ == "FirstRun" and (not wait or llm.engine._may_compile):
        break
llm.generate([[7] * 100, [8] * 3], SamplingParams(max_tokens=4, ignore_eos=True))
llm.generate([[9] * 2] * 20, SamplingParams(max_tokens=4, ignore_eos=True))
llm.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "precision"), [("qwen3", "f32"), ("qwen3", "auto"), ("qwen3_5_moe", "auto")])
def test_all_that_serves_later_was_compiled_beside(arch: str, precision: str, tmp_path: Path) -> None:
    folder = tiny_model(arch, tmp_path / "model", max_position_embeddings=100000)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    (tmp_path / "cache").mkdir()
    said = []
    for flags in (["--wait"], []):
        program = [sys.executable, "-c", WHOLE, str(folder), precision, *flags]
        done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=600, check=True)
        said.append([line for line in done.stdout.splitlines() if "CPU kernels" in line])
    (began, ended), nothing = said
    assert "in the background" in began
    assert "serve from now on" in ended
    assert not nothing
