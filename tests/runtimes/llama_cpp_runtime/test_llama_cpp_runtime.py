"""When llama.cpp runs a model, with which tokenizer, and what it is not asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.forward import random_ids
from support.gguf_only import write_bert
from support.tiny_models import tiny_model

from elastikv import LLM, SamplingParams
from elastikv.cli.main import main
from elastikv.errors import InvalidRequest, ModelError, NotInstalled, UnsupportedModel
from elastikv.runtimes import find
from elastikv.runtimes.llama_cpp.library import has_device, load_library
from elastikv.runtimes.llama_cpp.runtime import LlamaCppSource
from elastikv.runtimes.own import OwnSource

pytest.importorskip("llama_cpp.llama_cpp", reason="llama-cpp-python is not installed", exc_type=ImportError)

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


def test_its_tokenizer(open_llm: Callable[..., LLM], gguf: Callable[[str], Path]) -> None:
    llm = open_llm()
    with LLM(gguf("qwen3"), runtime="elastikv", n_ctx=64) as own:
        for text in ("Hello, world", "naïve façade 12 345", "  two spaces", "日本語"):
            assert llm.tokenizer.decode(llm.tokenizer.encode(text)) == text
            assert llm.tokenizer.encode(text) == own.tokenizer.encode(text)
    output = llm.generate("Hello", GREEDY)[0]
    assert output.text == llm.tokenizer.decode(output.token_ids)


def test_a_form_for_its_texts(open_llm: Callable[..., LLM]) -> None:
    llm = open_llm()
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "yy"]}}, "required": ["a"]}
    (output,) = llm.generate("Hello", SamplingParams(json_schema=schema, max_tokens=60, seed=1))
    assert json.loads(output.text)["a"] in ("x", "yy")
    special = llm.tokenizer.require_backend().get_added_tokens_decoder()
    assert all(token.special for token in special.values())


def test_embeddings_are_refused_by_name(open_llm: Callable[..., LLM]) -> None:
    with pytest.raises(InvalidRequest, match=r"embeddings .* llama\.cpp"):
        open_llm().embed("Hello")


def test_what_it_refuses(gguf: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="quantize"):
        LLM(gguf("qwen3"), runtime="llama.cpp", quantize="q8_0")
    with pytest.raises(ModelError, match="no such file"):
        find(tmp_path / "nothing.gguf", "llama.cpp")
    with pytest.raises(UnsupportedModel, match="GGUF"):
        find(tiny_model("llama", tmp_path), "llama.cpp")


def test_auto_takes_it_for_what_nothing_else_runs(
    gguf: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "elastikv")
    assert type(find(gguf("qwen3"))) is OwnSource
    assert not caplog.messages
    for arch in ("gemma3", "mamba"):
        assert type(find(gguf(arch))) is LlamaCppSource
        assert caplog.messages[-1].startswith(f"{gguf(arch)}: architecture '{arch}' is not supported")
        assert caplog.messages[-1].endswith("; it runs through llama.cpp")
    assert type(find(gguf("qwen3"), n_gpu_layers=-1)) is LlamaCppSource
    assert caplog.messages[-1] == f"{gguf('qwen3')}: layers are to be on a device; it runs through llama.cpp"


@pytest.mark.skipif(has_device(), reason="there is a device")
def test_a_device_that_is_not_there(gguf: Callable[[str], Path]) -> None:
    with pytest.raises(InvalidRequest, match=r"-ngl.* is 99, but this llama-cpp-python has no device"):
        LLM(gguf("qwen3"), n_gpu_layers=99)
    for runtime in ("elastikv", "transformers"):
        with pytest.raises(InvalidRequest, match=r"is for the runtime llama\.cpp"):
            LLM(gguf("qwen3"), runtime=runtime, n_gpu_layers=1)


def test_where_it_is_not_installed(
    gguf: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    load_library.cache_clear()
    monkeypatch.setitem(sys.modules, "llama_cpp.llama_cpp", None)
    with pytest.raises(NotInstalled, match=r"pip install elastikv\[llama-cpp\]"):
        LLM(gguf("qwen3"), runtime="llama.cpp")
    with pytest.raises(UnsupportedModel, match=r"'mamba' is not supported.*; llama.cpp is not installed: pip install"):
        LLM(gguf("mamba"))
    (tmp_path / "config.json").write_text('{"model_type": "unheard_of"}')
    with pytest.raises(UnsupportedModel) as refusal:
        LLM(tmp_path)
    assert "llama" not in str(refusal.value).split(":", 1)[1]  # it would not run a folder


@pytest.mark.parametrize("arch", ["gemma3", "mamba", "qwen3_5"])
def test_plan_asks_llama_cpp(arch: str, gguf: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["plan", "-m", str(gguf(arch)), "--runtime", "llama.cpp", "-c", "4096", "--at", "100,600", "--json"]) == 0
    )
    plan = json.loads(capsys.readouterr().out)
    with LLM(gguf(arch), runtime="llama.cpp", n_ctx=4096, n_threads=1) as llm:
        for row in plan["rows"]:
            llm.memory.clear()
            llm.forward(random_ids(row["tokens"], 300))
            stats = llm.stats()
            assert row["cells"] == stats.capacity_cells
            assert row["bytes"] + plan["recurrent_bytes"] == pytest.approx(stats.committed_bytes, rel=0.25)
    with LLM(gguf(arch), runtime="llama.cpp", n_ctx=4096, n_threads=1, kv_dynamic=False) as llm:
        static = plan["static_bytes"] + plan["recurrent_bytes"]
        assert static == pytest.approx(llm.stats().committed_bytes, rel=0.25)


def test_the_command_line(gguf: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("-c", "256", "-t", "1", "-n", "3", "--temp", "0")
    assert main(["run", "-m", str(gguf("gemma3")), "-p", "abc", *flags]) == 0
    said = capsys.readouterr()
    assert said.out.strip()
    assert len([line for line in said.err.splitlines() if "runs through llama.cpp" in line]) == 1
    assert main(["run", "-m", str(gguf("qwen3")), "-p", "x", "--runtime", "llama.cpp", "--kv-storage", "mmap"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("kv_storage: not with the runtime llama.cpp, which runs the file as it is; leave it out")


def test_a_model_that_makes_embeddings_is_refused(tmp_path: Path) -> None:
    """Its context has no memory."""
    with pytest.raises(UnsupportedModel, match="only models that continue a text are served"):
        LLM(write_bert(tmp_path / "bert.gguf"), n_ctx=256, n_threads=1)


@pytest.mark.filterwarnings("ignore:n_ctx = ")
def test_a_limit_that_is_far_away_costs_nothing(gguf: Callable[[str], Path]) -> None:
    """Not even where llama.cpp is asked what it would cost: it has books of 60 bytes a cell."""
    with LLM(gguf("qwen3"), runtime="llama.cpp", n_ctx=10**9, n_threads=1) as llm:
        llm.forward([1, 2, 3])
        assert llm.stats().capacity_cells == 256
        assert llm.static_bytes() == pytest.approx(10**9 * llm.cost.bytes_per_cell, rel=0.01)
