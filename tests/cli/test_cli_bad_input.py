"""Bad input: one line that names the mistake and the remedy, exit code 1 (2 for usage), and no traceback."""

from __future__ import annotations

import json
import shutil
import struct

import pytest

RUN = ("-p", "Once", "-n", "4", "-t", "1", "--kernels", "reference")


def assert_one_line(result, *words: str) -> None:
    assert result.code == 1
    assert "Traceback" not in result.err
    lines = [line for line in result.err.splitlines() if line.startswith("elastikv: error:")]
    assert len(lines) == 1, result.err
    for word in words:
        assert word in lines[0], lines[0]


def test_no_such_file(elastikv, tmp_path):
    assert_one_line(elastikv("run", "-m", tmp_path / "nowhere", *RUN), "nowhere", "no such")


def test_a_folder_without_weights(elastikv, model_path, tmp_path):
    shutil.copy(model_path / "config.json", tmp_path)
    assert_one_line(elastikv("run", "-m", tmp_path, *RUN), str(tmp_path), "weights")


def test_text_for_a_folder_without_tokenizer(elastikv, model_path, tmp_path):
    for file in ("config.json", "model.safetensors"):
        shutil.copy(model_path / file, tmp_path)
    assert_one_line(elastikv("run", "-m", tmp_path, *RUN), "came without a tokenizer")
    assert_one_line(elastikv("chat", "-m", tmp_path, "--kernels", "reference"), "no chat template")


def test_a_folder_without_config(elastikv, tmp_path):
    assert_one_line(elastikv("run", "-m", tmp_path, *RUN), "config.json")


def test_a_truncated_safetensors_file(elastikv, model_path, tmp_path):
    folder = shutil.copytree(model_path, tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert_one_line(elastikv("run", "-m", folder, *RUN), "model.safetensors", "truncated")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + struct.pack("<IQQ", 3, 10, 10), b"not a gguf file"])
def test_a_broken_gguf_file(elastikv, tmp_path, content):
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    assert_one_line(elastikv("run", "-m", path, *RUN), "broken.gguf")


def test_an_unsupported_architecture_is_named(elastikv, model_path, tmp_path):
    folder = shutil.copytree(model_path, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}
    (folder / "config.json").write_text(json.dumps(config))
    assert_one_line(elastikv("run", "-m", folder, *RUN), "T5ForConditionalGeneration", "Llama", "Qwen3")


def test_no_tokens_at_all(elastikv, model_path):
    assert_one_line(elastikv("run", "-m", model_path, "-p", "Once", "-n", "0"), "-n must be at least 1", "-1")


def test_a_bench_of_nothing(elastikv, model_path):
    assert_one_line(elastikv("bench", "-m", model_path, "-p", "0", "-n", "0"), "nothing to measure", "-p", "-n")


def test_a_context_of_zero(elastikv, model_path):
    assert_one_line(elastikv("run", "-m", model_path, "-c", "0", *RUN), "n_ctx", "at least 1")


def test_a_context_above_the_models_maximum_is_a_warning(elastikv, model_path):
    result = elastikv("run", "-m", model_path, "-c", "100000", *RUN)
    assert result.code == 0
    assert "100000" in result.err
    assert "4096" in result.err


def test_a_budget_below_the_first_cells(elastikv, model_path):
    assert_one_line(elastikv("run", "-m", model_path, "--kv-budget", "4KiB", *RUN), "--kv-budget")


@pytest.mark.parametrize("policy", ["double", "double:", "double:x", "step:0", "step:-1", "exact:1", "sometimes", ""])
def test_a_malformed_growth_policy(elastikv, model_path, policy):
    assert_one_line(elastikv("run", "-m", model_path, "--kv-growth", policy, *RUN), "double:<size>", "step:<cells>")


def test_a_prompt_longer_than_the_context(elastikv, model_path):
    result = elastikv("run", "-m", model_path, "-c", "8", "-p", "once upon a time " * 9, "-n", "4")
    assert_one_line(result, "context size of 8", "-c")


def test_an_empty_prompt(elastikv, model_path):
    assert_one_line(elastikv("run", "-m", model_path, "-p", ""), "empty")


def test_a_prompt_that_is_not_utf8(elastikv, model_path, tmp_path):
    path = tmp_path / "latin1.txt"
    path.write_bytes("Größe".encode("latin-1"))
    assert_one_line(elastikv("run", "-m", model_path, "-f", path), "latin1.txt", "UTF-8", "offset 2")


def test_a_prompt_file_that_is_not_there(elastikv, model_path, tmp_path):
    assert_one_line(elastikv("run", "-m", model_path, "-f", tmp_path / "gone.txt"), "gone.txt")


def test_an_unknown_flag_is_a_usage_error(elastikv):
    result = elastikv("run", "--kv-bugdet", "4GiB")
    assert result.code == 2
    assert "--kv-bugdet" in result.err
