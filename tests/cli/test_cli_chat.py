"""`elastikv chat` with a scripted user."""

from __future__ import annotations

import re

import pytest

QUICK = ("--temp", "0", "-n", "6", "-t", "1", "--kernels", "reference", "-c", "2048")


@pytest.fixture
def chat(elastikv, model_path, monkeypatch):
    """Feed lines to the chat; the prompts it shows are returned with the rest of its output."""

    def call(*lines: str, flags=()):
        script = iter(lines)
        prompts: list[str] = []

        def scripted_input(prompt: str) -> str:
            prompts.append(prompt)
            try:
                return next(script)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", scripted_input)
        return elastikv("chat", "-m", model_path, *QUICK, *flags), prompts

    return call


def test_each_message_is_answered_and_the_gauge_rises(chat):
    result, prompts = chat("hello", "and again")
    assert result.code == 0
    assert len(prompts) == 3
    assert prompts[0].startswith("[..........] 0 B of")
    assert re.match(r"\[#+\.*\] \d", prompts[1])


def test_clear_gives_the_memory_back(chat):
    result, prompts = chat("hello", "/clear")
    assert re.search(r"gave back \d+.* [KM]iB", result.out)
    assert " 0 B of" in prompts[2]


def test_the_same_conversation_after_clear_gets_the_same_answer(chat):
    result, _ = chat("hello", "/clear", "hello")
    before, after = re.split(r"gave back .*\n", result.out)
    assert before.strip() == after.strip()
    assert before.strip()


def test_commands_answer(chat):
    result, _ = chat(
        "/help", "/nothing", "hello", "/stats", "/shrink", "/retry", "/system Be brief.", "/exit", "not read"
    )
    assert result.code == 0
    for words in ("/clear", "no command /nothing", "cells", "gave back"):
        assert words in result.out


def test_ctrl_c_stops_a_reply_and_keeps_the_session(chat, monkeypatch):
    from elastikv import LLM

    answer = LLM.chat
    calls = []

    def interrupted_once(self, messages, *args, **kwargs):
        calls.append(list(messages))
        for delta in answer(self, messages, *args, **kwargs):
            yield delta
            if len(calls) == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(LLM, "chat", interrupted_once)
    result, prompts = chat("hello", "go on")
    assert "(stopped)" in result.out
    assert [message["role"] for message in calls[1]] == ["user", "assistant", "user"]
    assert len(prompts) == 3


def test_a_refused_message_is_taken_back(chat):
    result, prompts = chat("hello " * 2000, "hi")
    assert "not answered" in result.out
    assert result.code == 0
    assert len(prompts) == 3
