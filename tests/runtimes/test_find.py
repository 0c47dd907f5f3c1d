"""Which runtime runs a model, and what it takes to add one."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from support.history_model import HistoryModel, expected_tokens
from support.tiny_models import tiny_model, tiny_tokenizer

from elastikv import LLM, SamplingParams
from elastikv.cli import options
from elastikv.errors import InvalidRequest, ModelError, UnsupportedModel
from elastikv.memory import MemoryCost, MemoryOptions
from elastikv.runtimes import RUNTIMES, find
from elastikv.runtimes.base import Runtime, RuntimeOptions
from elastikv.runtimes.own import OwnSource
from elastikv.runtimes.torch_runtime import open_runtime
from elastikv.runtimes.transformers import TransformersSource
from elastikv.weights.tokenizer import Tokenizer


@dataclass
class HistoryConfig:
    name: str
    architecture: str = "history"
    n_ctx_train: int = 512


class HistorySource:
    """Runs folders of the model type ``history``."""

    def __init__(self, path: Path) -> None:
        if json.loads((path / "config.json").read_text())["model_type"] != "history":
            raise UnsupportedModel(f"{path}: no history")
        self.config = HistoryConfig(path.name)

    def cost(self, options: MemoryOptions) -> MemoryCost:
        return MemoryCost(HistoryModel().memory_layers, options)

    def load(self, options: RuntimeOptions) -> Runtime:
        return open_runtime(
            HistoryModel(), Tokenizer(tiny_tokenizer().backend_tokenizer), options, torch.set_num_threads
        )


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that only a third runtime can run, which is plugged in while the test runs."""
    module = ModuleType("history_runtime")
    module.HistorySource = HistorySource  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "history_runtime", module)
    monkeypatch.setitem(RUNTIMES, "history", ("history_runtime", "HistorySource"))
    folder = tmp_path / "history"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "history"}')
    return folder


@pytest.mark.parametrize("runtime", ["auto", "history"])
def test_a_third_runtime_serves_through_the_same_engine(runtime: str, history: Path) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    with LLM(history, runtime=runtime, kv_initial=16, kv_dtype="f32") as llm:
        assert (llm.n_ctx, llm.model.info.architecture) == (512, "history")
        outputs = llm.generate([[1, 2, 3], [4, 5]], greedy)
        assert [output.token_ids for output in outputs] == [expected_tokens([1, 2, 3], 20), expected_tokens([4, 5], 20)]
        assert llm.memory.max_capacity < 512


def test_auto_takes_the_first_that_can(tmp_path: Path, history: Path) -> None:
    path = tiny_model("llama", tmp_path)
    assert type(find(path)) is OwnSource
    assert type(find(path, "transformers")) is TransformersSource
    assert type(find(history)) is HistorySource


def test_transformers_runs_what_has_a_fast_path_too(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path)
    tokens = []
    for runtime in ("elastikv", "transformers"):
        with LLM(path, runtime=runtime, n_ctx=64, dtype="f32", kv_dtype="f32") as llm:
            (output,) = llm.generate([[1, 2, 3]], SamplingParams(temperature=0, max_tokens=16, ignore_eos=True))
            tokens.append(output.token_ids)
    assert tokens[0] == tokens[1]


def test_the_command_line_offers_every_runtime() -> None:
    """It keeps the names itself: ``--help`` must not wait for torch."""
    assert ("auto", *RUNTIMES) == options.RUNTIMES


def test_refusals(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path)
    with pytest.raises(InvalidRequest, match=r"one of auto, elastikv, transformers, llama\.cpp, got 'vllm'"):
        LLM(path, runtime="vllm")
    with pytest.raises(InvalidRequest, match=r"device \(--device\) must be cpu, got 'cuda'"):
        LLM(path, device="cuda")
    with pytest.raises(ModelError, match="no such file"):
        find(tmp_path / "nothing")
    (tmp_path / "config.json").write_text('{"model_type": "smollm3"}')
    with pytest.raises(UnsupportedModel, match="smollm3"):
        find(tmp_path, "elastikv")
