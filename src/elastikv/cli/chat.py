"""``elastikv chat``: a conversation in the terminal, with the cache's memory beside the prompt."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from elastikv.cli import chat_file
from elastikv.cli.chat_input import line_reader, read_message
from elastikv.cli.options import (
    add_model_arguments,
    add_sampling_arguments,
    add_speculation_arguments,
    llm_from_args,
    sampling_from_args,
    scheduler_from_args,
)
from elastikv.cli.report import ResizeLog, gauge, resizes
from elastikv.errors import ElastikvError, GenerationCut, InvalidRequest, format_bytes

if TYPE_CHECKING:
    from elastikv import LLM, SamplingParams

HELP = """\
/clear         forget the conversation and give its memory back
/shrink        give back capacity that no token uses
/stats         what the memory holds
/system TEXT   set the system message and start anew
/retry         answer the last message again
/save FILE     write the conversation to a file, and its cells beside it
/load FILE     go on with a saved conversation
/help          this list
/exit          leave (also Ctrl-D)
Ctrl-C stops a reply and keeps what was said. Alt-Enter, or a backslash at the end, begins a new line."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    chat = parser.add_argument_group("chat")
    chat.add_argument("--system", metavar="TEXT", help="system message")
    chat.add_argument("-p", "--prompt", metavar="TEXT", help="first message")
    chat.add_argument("-v", "--verbose", action="store_true", help="a line on stderr for every resize")
    add_model_arguments(parser)
    add_speculation_arguments(parser)
    add_sampling_arguments(parser, n_predict=-1)


def run(args: argparse.Namespace) -> int:
    """Talk until the user leaves. Returns the exit status."""
    params = sampling_from_args(args)
    with llm_from_args(args, scheduler=scheduler_from_args(args)) as llm:
        if not llm.tokenizer.has_chat_template:
            raise InvalidRequest("the model has no chat template; use `elastikv run`")
        if sys.stdin.isatty():
            print("Type a message, or /help.")
        Conversation(llm, params, args.system, verbose=args.verbose).loop(first=args.prompt)
    return 0


class Conversation:
    """The messages so far, and the commands that act on them."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None, *, verbose: bool) -> None:
        self._llm = llm
        self._params = params
        self._system = system
        self._resizes = ResizeLog(llm, enabled=verbose)
        self._messages: list[dict[str, str]] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "/clear": lambda _: self._clear(),
            "/shrink": lambda _: print(f"gave back {format_bytes(self._llm.shrink_to_fit())}"),
            "/stats": lambda _: self._print_stats(),
            "/system": self._set_system,
            "/retry": lambda _: self._retry(),
            "/save": self._save,
            "/load": self._load,
            "/help": lambda _: print(HELP),
        }
        self._start()

    def loop(self, first: str | None = None) -> None:
        """Answer or obey line after line until ``/exit`` or the end of the input; ``first`` comes before them."""
        line, read_line = first, line_reader(self._status, [*self._commands, "/exit"])
        while True:
            if line is None:
                try:
                    line = read_message(read_line)
                except EOFError:
                    print()
                    return
                except KeyboardInterrupt:
                    print("\n(Ctrl-D or /exit leaves)")
                    continue
            if line in ("/exit", "/quit"):
                return
            self._handle(line)
            line = None

    def _handle(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if not line:
            return
        if command := self._commands.get(name):
            command(rest.strip())
        elif name.startswith("/"):
            print(f"no command {name}; /help lists them")
        else:
            self._messages.append({"role": "user", "content": line})
            self._reply()

    def _reply(self) -> None:
        """Answer the last message. What could not be answered is taken back, so that it can be sent again."""
        pieces: list[str] = []
        try:
            for delta in self._llm.chat(self._messages, self._params, stream=True):
                pieces.append(delta.text)
                print(delta.text, end="", flush=True)
                self._resizes.update()
        except KeyboardInterrupt:
            print(" (stopped)", end="")
        except GenerationCut as cut:
            print(f"\n(stopped: {cut.cause}; /clear or /shrink makes room)", end="")
        except ElastikvError as error:
            print(f"(not answered: {error}; /clear makes room)")
            self._messages.pop()
            return
        print()
        self._messages.append({"role": "assistant", "content": "".join(pieces)})

    def _save(self, name: str) -> None:
        self._with_file(name, self._save_to)

    def _save_to(self, path: Path) -> None:
        n_cells = chat_file.save(path, self._messages, self._llm)
        print(f"saved {len(self._messages)} messages to {path}, and {n_cells} cells beside it")

    def _load(self, name: str) -> None:
        self._with_file(name, self._load_from)

    def _load_from(self, path: Path) -> None:
        messages, n_cells = chat_file.load(path, self._llm)
        self._messages = messages
        self._system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
        cells = f"{n_cells} cells" if n_cells else "no cells of this model: they will be computed again"
        print(f"loaded {len(messages)} messages, {cells}")

    def _with_file(self, name: str, act: Callable[[Path], None]) -> None:
        if not name:
            print("which file? /save FILE, /load FILE")
            return
        try:
            act(Path(name).expanduser())
        except InvalidRequest as error:
            print(f"({error})")

    def _retry(self) -> None:
        if self._messages and self._messages[-1]["role"] == "assistant":
            self._messages.pop()
        if self._messages and self._messages[-1]["role"] == "user":
            self._reply()
        else:
            print("nothing to answer again")

    def _start(self) -> None:
        self._messages = [{"role": "system", "content": self._system}] if self._system else []

    def _clear(self) -> None:
        before = self._llm.stats().committed_bytes
        self._llm.clear()
        self._start()
        print(f"gave back {format_bytes(before - self._llm.stats().committed_bytes)}")

    def _set_system(self, text: str) -> None:
        self._system = text or None
        self._clear()

    def _status(self) -> str:
        stats = self._llm.stats()
        return f"{gauge(self._llm)}, {stats.used_cells} of {self._llm.n_ctx} cells"

    def _print_stats(self) -> None:
        stats = self._llm.stats()
        print(
            f"cells {stats.used_cells} used, capacity {stats.capacity_cells} of {self._llm.n_ctx}; "
            f"committed {format_bytes(stats.committed_bytes)}, peak {format_bytes(stats.peak_committed_bytes)}; "
            f"--no-kv-dynamic would hold {format_bytes(self._llm.static_bytes())}; "
            f"resizes: {resizes(stats)}"
        )
