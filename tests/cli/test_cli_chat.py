"""`elastikv chat` with a scripted user."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest

from elastikv.cli.chat_input import line_reader, read_message

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


def test_a_backslash_continues_a_message(chat, monkeypatch):
    from elastikv import LLM

    said, answer = [], LLM.chat
    monkeypatch.setattr(
        LLM, "chat", lambda self, messages, *a, **k: (said.extend(messages), answer(self, messages, *a, **k))[1]
    )
    chat("one\\", "two")
    assert said[0]["content"] == "one\ntwo"


def test_saved_and_loaded_it_goes_on_where_it_was(chat, tmp_path):
    file = tmp_path / "talk.json"
    first, _ = chat("hello", f"/save {file}", "and then?")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [message["role"] for message in json.loads(file.read_text())["messages"]] == ["user", "assistant"]

    second, _ = chat(f"/load {file}", "and then?")
    reply = first.out.split("beside it\n")[1]
    assert second.out.split(" cells\n")[1] == reply
    n_cells = int(re.search(r"and (\d+) cells beside", first.out)[1])
    assert n_cells > 0


def test_a_conversation_of_another_model_is_loaded_without_its_cells(chat, tmp_path):
    file = tmp_path / "talk.json"
    chat("hello", f"/save {file}")
    cells = Path(f"{file}.kv")
    cells.write_bytes(cells.read_bytes()[:-9])
    result, _ = chat(f"/load {file}", "hello")
    assert "computed again" in result.out
    assert result.code == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("{", "no saved conversation"),
        ("[]", "messages"),
        ('{"messages": [{"role": "tool", "content": ""}]}', "role"),
        ('{"messages": [{"role": "user", "content": [1]}]}', "content"),
        ("\ud800", "no saved conversation"),
    ],
)
def test_no_saved_conversation(chat, tmp_path, content: str | None, words: str):
    file = tmp_path / "talk.json"
    if content is not None:
        file.write_bytes(content.encode("utf-8", "surrogatepass"))
    result, _ = chat("/load", f"/load {file}", "/load", f"/save {tmp_path}/none/talk.json")
    assert "which file" in result.out
    assert words in result.out
    assert "none/talk.json: No such file" in result.out
    assert result.code == 0


def test_saving_without_a_session_forgets_the_cells_of_an_older_one(chat, tmp_path):
    file = tmp_path / "talk.json"
    chat("hello", f"/save {file}", "/clear", f"/save {file}")
    assert not Path(f"{file}.kv").exists()
    assert json.loads(file.read_text())["messages"] == []


class Terminal:
    """Keys are typed into a pipe; what is drawn goes nowhere."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        monkeypatch.setenv("XDG_STATE_HOME", str(home))

    def read(self, keys: str, n: int = 1) -> list[str]:
        from prompt_toolkit.application import create_app_session
        from prompt_toolkit.input import create_pipe_input
        from prompt_toolkit.output import DummyOutput

        with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
            pipe.send_text(keys)
            read_line = line_reader(lambda: "status", ["/clear", "/save"])
            return [read_message(read_line) for _ in range(n)]


def test_keys_of_a_terminal(monkeypatch, tmp_path):
    terminal = Terminal(monkeypatch, tmp_path)
    assert terminal.read("one\x1b\rtwo\r") == ["one\ntwo"]  # Alt-Enter
    assert terminal.read("one\ntwo\r") == ["one\ntwo"]  # Ctrl-J
    assert terminal.read("\x1b[200~a\nb\x1b[201~\r") == ["a\nb"]  # pasted
    assert terminal.read("one\\\rtwo\r") == ["one\ntwo"]
    with pytest.raises(EOFError):
        terminal.read("\x04")
    with pytest.raises(KeyboardInterrupt):
        terminal.read("\x03")


def test_history_outlives_the_process_and_is_the_users_alone(monkeypatch, tmp_path):
    terminal = Terminal(monkeypatch, tmp_path)
    terminal.read("first message\r")
    assert terminal.read("\x1b[A\r") == ["first message"]  # the arrow upwards
    assert stat.S_IMODE((tmp_path / "elastikv" / "chat_history").stat().st_mode) == 0o600


def test_history_that_cannot_be_kept_keeps_nobody_from_talking(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    terminal = Terminal(monkeypatch, tmp_path / "file")
    assert terminal.read("hello\r") == ["hello"]
    assert "history is not kept" in capsys.readouterr().err
