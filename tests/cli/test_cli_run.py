"""`elastikv run` on a tiny model: what it prints, and where."""

from __future__ import annotations

import io
import re
import sys

import pytest
from support.tiny_models import tiny_model

from elastikv.engine.drafting import Drafter
from elastikv.kernels import select_kernels
from elastikv.runtimes import own

QUICK = ("--temp", "0", "-n", "12", "--ignore-eos", "-t", "1", "--kernels", "reference")


def test_the_prompt_is_followed_by_text_on_stdout(elastikv, model_path):
    result = elastikv("run", "-m", model_path, "-p", "Once upon", *QUICK)
    assert result.code == 0
    assert result.out.startswith("Once upon")
    assert len(result.out) > len("Once upon\n")


def test_the_prompt_can_be_left_out(elastikv, model_path):
    shown = elastikv("run", "-m", model_path, "-p", "Once upon", *QUICK)
    hidden = elastikv("run", "-m", model_path, "-p", "Once upon", "--no-display-prompt", *QUICK)
    assert shown.out == "Once upon" + hidden.out


def test_a_file_and_stdin_serve_as_prompt(elastikv, model_path, tmp_path, monkeypatch):
    expected = elastikv("run", "-m", model_path, "-p", "Größe ", *QUICK).out
    (tmp_path / "prompt.txt").write_text("Größe ", encoding="utf-8")
    assert elastikv("run", "-m", model_path, "-f", tmp_path / "prompt.txt", *QUICK).out == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Größe ".encode())))
    assert elastikv("run", "-m", model_path, *QUICK).out == expected


def test_static_and_dynamic_memory_say_the_same(elastikv, model_path):
    common = ("run", "-m", model_path, "-p", "The quick brown", "-c", "600", *QUICK, "-n", "80")
    dynamic = elastikv(*common, "--kv-initial", "16", "--kv-growth", "step:16")
    assert dynamic.out == elastikv(*common, "--no-kv-dynamic").out
    assert dynamic.out == elastikv(*common, "--kv-storage", "copy", "--kv-initial", "16").out


def test_bench_lists_kernels_without_a_model(elastikv):
    result = elastikv("bench", "--list-kernels", "-m", "/no/such/model")
    assert result.code == 0
    assert re.search(r"^packed weights .*(8-bit integers|float32)", result.out, re.M)
    assert re.search(r"^prefill attention +(16-bit integers|float32)", result.out, re.M)
    exact = elastikv("bench", "--list-kernels", "--attention-precision", "f32")
    assert re.search(r"^prefill attention +float32", exact.out, re.M)
    assert elastikv("bench", "--list-kernels", "--kernels", "reference").out == "plain torch computes everything\n"


def test_stats_compare_with_a_static_cache(elastikv, model_path):
    result = elastikv("run", "-m", model_path, "-p", "Once", "-c", "4096", "--stats", *QUICK)
    assert "capacity 256 of 4096" in result.err
    assert re.search(r"with --no-kv-dynamic +\d.* \(16\.0 times as much\)", result.err) or "times as much" in result.err
    assert "capacity" not in result.out


def test_stats_tell_of_resizes_only_if_there_were_any(elastikv, model_path):
    arguments = ("run", "-m", model_path, "-p", "Once", "--stats", *QUICK)
    assert re.search(r"resizes +none", elastikv(*arguments).err)
    grown = elastikv(*arguments, "-n", "40", "--kv-initial", "16", "--kv-growth", "step:16")
    assert re.search(r"resizes +[2-9] in \d+\.\d ms", grown.err)


def test_verbose_tells_of_each_resize(elastikv, model_path):
    arguments = ("run", "-m", model_path, "-p", "Once", *QUICK, "-n", "40", "-v", "--kv-initial", "16")
    result = elastikv(*arguments, "--kv-growth", "step:16")
    assert re.search(r"\[kv\] 16 -> 32 cells", result.err)
    assert re.search(r"\[kv\] 32 -> 48 cells", result.err)


def test_generation_stops_at_the_context_limit(elastikv, model_path):
    result = elastikv("run", "-m", model_path, "-p", "Once", "-c", "30", *QUICK, "-n", "-1", "--stats")
    assert result.code == 0
    assert "30 used, capacity 30 of 30" in result.err or "29 used" in result.err


def test_no_prompt_at_a_terminal_is_an_error(elastikv, model_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    result = elastikv("run", "-m", model_path)
    assert result.code == 1
    assert "-p TEXT" in result.err


def test_interrupting_a_run_leaves_with_130(elastikv, model_path, monkeypatch):
    import elastikv.cli.run as command

    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "sampling_from_args", interrupted)
    assert elastikv("run", "-m", model_path, "-p", "Once").code == 130


@pytest.mark.parametrize("command", ["run", "chat", "plan", "bench", "serve"])
def test_every_command_has_help(elastikv, command):
    result = elastikv(command, "--help")
    assert result.code == 0
    assert "--kv-budget" in result.out


def test_the_precision_of_attention_reaches_the_kernels(elastikv, model_path, monkeypatch):
    asked_for = []

    def select(name, device, attention_precision):
        asked_for.append(attention_precision)
        return select_kernels(name, device, attention_precision)

    monkeypatch.setattr(own, "select_kernels", select)
    elastikv("run", "-m", model_path, "-p", "Once", *QUICK)
    elastikv("run", "-m", model_path, "-p", "Once", "--attention-precision", "f32", *QUICK)
    assert asked_for == ["auto", "f32"]


@pytest.mark.parametrize("command", ["run", "chat"])
def test_guesses_leave_the_text_as_it_is(elastikv, tmp_path, monkeypatch, command):
    model = tiny_model("llama", tmp_path / "llama")
    guesses, draft = [], Drafter.draft
    monkeypatch.setattr(Drafter, "draft", lambda *args: guesses.append(draft(*args)) or guesses[-1])
    monkeypatch.setattr("builtins.input", lambda _: "/exit")
    few = ("--temp", "0", "-n", "40", "-t", "1", "-c", "512", "--kernels", "reference")
    arguments = (command, "-m", model, "-p", "ab ab ab ab ab ab", *few)
    plain = elastikv(*arguments)
    assert not guesses
    guessed = elastikv(*arguments, "--spec-type", "ngram-simple", "--spec-ngram-simple-size-m", "5")
    assert (guessed.code, guessed.out) == (0, plain.out)
    assert 0 < max(map(len, guesses)) <= 5
    refused = elastikv(*arguments, "--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "0")
    assert refused.code == 1
    assert "ngram_size_n" in refused.err
