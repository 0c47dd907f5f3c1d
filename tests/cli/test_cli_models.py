"""`elastikv models`, and the two ways to say which model."""

from __future__ import annotations

import json
import shutil

import huggingface_hub.constants
import pytest
from support.gguf_only import write_bert

from elastikv import demo


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def snapshot(cache, repo):
    folder = cache / f"models--{repo.replace('/', '--')}" / "snapshots" / "abc"
    folder.parent.mkdir(parents=True)
    return folder


@pytest.fixture
def demo_and_bert(cache):
    shutil.copytree(demo.path(), snapshot(cache, "user/demo"))
    bert = snapshot(cache, "user/bert")
    bert.mkdir()
    write_bert(bert / "bert-F32.gguf")
    return cache


def test_models_are_listed_with_what_they_cost(elastikv, demo_and_bert):
    bert, small = json.loads(elastikv("models", "--json").out)
    plan = json.loads(elastikv("plan", "-hf", "user/demo", "--json").out)
    assert small["model"] == plan["model"] == "user/demo"
    assert small["path"] == str(demo_and_bert / "models--user--demo" / "snapshots" / "abc")
    assert (small["runtime"], small["architecture"], small["refusal"]) == ("elastikv", "qwen3_5", None)
    assert small["disk_bytes"] == plan["weight_bytes"]
    assert small["bytes_per_cell"] == plan["bytes_per_cell"]
    assert small["cache_bytes"] == plan["static_bytes"] + plan["recurrent_bytes"]
    assert (bert["model"], bert["runtime"]) == ("user/bert:F32", None)


def test_the_table_says_why_a_model_does_not_run(elastikv, demo_and_bert):
    result = elastikv("models")
    assert result.err == ""
    heading, bert, small, reason = result.out.splitlines()
    assert heading.split() == ["model", "(-hf)", "on", "disk", "a", "cell", "full", "cache", "runs", "through"]
    assert "nothing here" in bert
    assert " ".join(small.split()) == "user/demo 8.57 MiB 1 KiB 32.4 MiB at -c 32768 elastikv (qwen3_5)"
    assert reason.startswith("user/bert:F32: ")
    # llama.cpp, where it is installed, knows the architecture.
    assert "architecture 'bert' is not supported" in reason or "this model makes embeddings" in reason


def test_an_empty_cache_says_how_to_fill_it(elastikv, cache):
    result = elastikv("models")
    assert (result.code, result.out) == (0, "")
    assert result.err == f"{cache} has no models; `elastikv pull user/repo` fetches one\n"


def test_a_model_is_asked_for_in_one_way(elastikv):
    assert "not allowed with argument" in elastikv("plan", "-hf", "user/demo", "-m", "x").err


@pytest.mark.parametrize("command", ["run", "chat", "serve", "plan", "bench"])
def test_every_command_that_takes_a_model_takes_one_of_the_hub(elastikv, command):
    assert "-hf, -hfr, --hf-repo NAME" in " ".join(elastikv(command, "--help").out.split()).replace(" NAME,", ",")


def test_a_name_for_a_path_is_told_apart(elastikv):
    result = elastikv("plan", "-m", "user/demo")
    assert result.err == "elastikv: error: user/demo: no such file or folder; for the model of the hub: -hf user/demo\n"
