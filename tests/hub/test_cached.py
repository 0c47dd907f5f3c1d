"""What the hub's cache has, found without asking anybody."""

from __future__ import annotations

import os
from pathlib import Path

import huggingface_hub.constants
import pytest

from elastikv import LLM, HubError, InvalidRequest
from elastikv.hub import HubModel, cache, local_path

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def put(folder: Path, repo: str, commit: str, *names: str, main: bool = False, time: int = 0) -> Path:
    repository = folder / f"models--{repo.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for name in names:
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes(b"12345678")
    if main:
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
    os.utime(snapshot, (time, time))
    return snapshot


def found(text: str) -> Path | None:
    return cache.find(HubModel.parse(text))


def test_an_empty_cache_has_nothing(folder):
    assert found("user/repo") is None
    assert cache.models() == []


def test_a_model_is_whole_or_not_there(folder):
    snapshot = put(folder, "user/repo", NEW, "m-Q8_0-00001-of-00002.gguf")
    assert found("user/repo") is None
    (snapshot / "m-Q8_0-00002-of-00002.gguf").write_bytes(b"1")
    assert found("user/repo") == snapshot / "m-Q8_0-00001-of-00002.gguf"
    assert [(str(each.model), each.n_bytes) for each in cache.models()] == [("user/repo:Q8_0", 9)]


def test_a_folder_needs_its_config_and_all_shards(folder):
    snapshot = put(folder, "user/repo", NEW, "config.json", "one.safetensors")
    assert found("user/repo") is None
    index = snapshot / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}')
    assert found("user/repo") is None
    (snapshot / "two.safetensors").write_bytes(b"1")
    assert found("user/repo") == snapshot
    index.write_text("no json")
    assert found("user/repo") is None


def test_a_link_to_what_was_deleted_is_no_file(folder):
    snapshot = put(folder, "user/repo", NEW, "README.md")
    (snapshot / "m-Q8_0.gguf").symlink_to(folder / "gone")
    assert found("user/repo") is None


def test_the_main_branch_is_before_what_is_newer_and_what_is_whole_before_both(folder):
    old = put(folder, "user/repo", OLD, "m-Q8_0.gguf", "m-Q4_0.gguf", main=True, time=1)
    new = put(folder, "user/repo", NEW, "m-Q8_0.gguf", "m-F16.gguf", time=2)
    assert found("user/repo:Q8_0") == old / "m-Q8_0.gguf"
    assert found("user/repo:F16") == new / "m-F16.gguf"
    assert {str(each.model) for each in cache.models()} == {"user/repo:Q8_0", "user/repo:Q4_0", "user/repo:F16"}


def test_a_text_is_a_path_first_and_then_a_name(folder, monkeypatch):
    snapshot = put(folder, "user/repo", NEW, "m-Q8_0.gguf")
    monkeypatch.chdir(folder)
    assert local_path("user/repo") == snapshot / "m-Q8_0.gguf"
    (folder / "user" / "repo").mkdir(parents=True)
    assert local_path("user/repo") == Path("user/repo")
    assert local_path(HubModel("user/repo")) == snapshot / "m-Q8_0.gguf"
    assert local_path(Path("user/other")) == Path("user/other")
    assert local_path("user/other.gguf") == Path("user/other.gguf")


def test_llm_takes_a_name_and_says_what_it_could_have_been(folder):
    with pytest.raises(
        HubError, match=r"^user/none: no such file or folder, nor .* HF_HUB_OFFLINE is set; once online"
    ):
        LLM("user/none")
    with pytest.raises(InvalidRequest, match="model must be the path"):
        LLM(3)
