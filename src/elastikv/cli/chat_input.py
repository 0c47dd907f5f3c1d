"""Where ``elastikv chat`` reads messages from: a terminal, with history and a status line, or whatever is piped in.

In a message, Alt-Enter (or Ctrl-J) begins a new line, and so does a backslash at the end of a line, as in llama.cpp;
text that is pasted keeps its lines.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings

ReadLine = Callable[[], str]
"""The next line. Raises EOFError at the end, KeyboardInterrupt for Ctrl-C."""


def line_reader(status: Callable[[], str], commands: Sequence[str]) -> ReadLine:
    """Lines of standard input; ``status`` is shown with each prompt, ``commands`` are completed in a terminal."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        session = _terminal(status, commands)
        return lambda: session.prompt("> ")
    return lambda: input(f"{status()} > ")


def read_message(read_line: ReadLine) -> str:
    """One message; lines that end in a backslash go on in the next one."""
    lines = [read_line()]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(read_line())
    return "\n".join(lines).strip()


def history_path() -> Path:
    """What was typed in earlier conversations; in the folder that XDG_STATE_HOME names."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "elastikv" / "chat_history"


def _terminal(status: Callable[[], str], commands: Sequence[str]) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory

    history: History = InMemoryHistory()
    path = history_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # what is typed is the user's alone
        history = FileHistory(path)
    except OSError as error:
        print(f"(history is not kept: {path}: {error.strerror})", file=sys.stderr)
    return PromptSession(
        history=history,
        completer=WordCompleter(list(commands), sentence=True),
        complete_while_typing=False,
        multiline=True,
        key_bindings=_keys(),
        bottom_toolbar=status,
        prompt_continuation="  ",
    )


def _keys() -> KeyBindings:
    """Enter sends, though there may be several lines."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()
    keys.add("enter")(lambda event: event.current_buffer.validate_and_handle())
    for chord in (("escape", "enter"), ("c-j",)):
        keys.add(*chord)(lambda event: event.current_buffer.insert_text("\n"))
    return keys
