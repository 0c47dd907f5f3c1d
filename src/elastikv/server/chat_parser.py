"""From the text of a reply to its parts as they come: thoughts, content, calls. transformers' parser finds them."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from elastikv.server.chat_formats import THINK, CallFormat


@dataclass(frozen=True, slots=True)
class Piece:
    """Something new. The first piece of a call has its ``call_id`` and ``name``; ``call`` counts them from 0."""

    kind: Literal["reasoning", "content", "call"]
    text: str
    call: int = 0
    name: str | None = None
    call_id: str | None = None


def response_template(family: CallFormat | None, *, thinks: bool) -> dict[str, Any] | None:
    """What transformers' parser is told to look for; None: nothing, all is content."""
    fields: dict[str, Any] = {}
    if thinks:
        fields["reasoning_content"] = {"open": THINK[0], "close": THINK[1]}
    content: dict[str, Any] = {}
    if family is not None:
        fields["tool_calls"] = dict(family.region)
        if family.end and family.closing:  # the last call is over: what is around all of them is no content
            content = {"close": family.closing}
    # What comes before the reply is handed over without anything that would have to be left out.
    return {"start_anchor": "\0", "fields": {**fields, "content": content}} if fields else None


class MessageParser:
    """One reply.

    prefix: what of it the prompt has already (``<think>``), or, for a model's own template, the whole prompt.
    head: see ``CallFormat``. hides_thoughts: they are found, but no pieces.
    """

    def __init__(
        self,
        template: Mapping[str, Any] | None,
        prefix: str = "",
        *,
        head: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        hides_thoughts: bool = False,
    ) -> None:
        from transformers.utils.chat_parsing import ResponseParser

        self._parser = None if template is None else ResponseParser(template, prefix=prefix, tools=list(tools))
        self._head = head and re.compile(head, re.DOTALL)
        self._hides_thoughts = hides_thoughts
        self._space = ""  # white space at a part's end, which is not shown unless more of the part follows
        self._at: str | None = None  # the part that was shown last
        self._call: _Call | None = None
        self._n_calls = 0

    def feed(self, text: str) -> list[Piece]:
        """What has become certain with this text."""
        if self._parser is None:
            return [Piece("content", text)] if text else []
        try:
            events = self._parser.feed(text)
        except ValueError:  # a region that is not what the template promises: what is left is text
            return self._give_up(text)
        return self._pieces(events)

    def finish(self) -> list[Piece]:
        """What is left when no text follows."""
        if self._parser is None:
            return []
        try:
            _, events = self._parser.finalize()
        except ValueError:
            return self._give_up("")
        return self._pieces(events)

    def read(self, text: str, *, is_last: bool) -> list[Piece]:
        """The pieces of a text that follows; of all that is left, with the last one."""
        return [*self.feed(text), *(self.finish() if is_last else ())]

    def _pieces(self, events: Iterable[Mapping[str, Any]]) -> list[Piece]:
        pieces: list[Piece] = []
        for event in events:
            if event["field"] == "tool_calls":
                pieces += self._of_call(event)
            elif event["type"] == "region_chunk":
                kind: Literal["reasoning", "content"] = "content" if event["field"] == "content" else "reasoning"
                pieces += self._of_text(kind, event["text"])
        return pieces

    def _of_text(self, kind: Literal["reasoning", "content"], text: str) -> list[Piece]:
        """Without the white space around a part; but a reply that is nothing else than content stays as it is."""
        if self._at is None and kind == "content":
            self._at = "only content"
        if self._at == "only content":
            return [Piece(kind, text)]
        if kind != self._at:
            self._space, text = "", text.lstrip()
        text = self._space + text
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if not shown:
            return []
        self._at = kind
        return [] if kind == "reasoning" and self._hides_thoughts else [Piece(kind, shown)]

    def _of_call(self, event: Mapping[str, Any]) -> list[Piece]:
        self._at = "call"
        if event["type"] == "region_open":
            self._call = _Call(self._head or None)
            return []
        assert self._call is not None
        if event["type"] == "region_chunk":
            return self._numbered(self._call.feed(event["text"]))
        body, is_told = self._call.body, self._call.is_told
        self._call = None
        if is_told:
            return []
        calls = list(_calls(event["value"]))
        if not calls:  # the model was up to something else
            return [Piece("content", body)]
        return [piece for name, arguments in calls for piece in self._numbered((name, arguments))]

    def _numbered(self, told: tuple[str | None, str] | None) -> list[Piece]:
        if told is None:
            return []
        name, text = told
        if name is None:
            return [Piece("call", text, self._n_calls - 1)] if text else []
        self._n_calls += 1
        # Mistral's templates take back ids of nine letters and digits only.
        return [Piece("call", text, self._n_calls - 1, name, uuid.uuid4().hex[:9])]

    def _give_up(self, text: str) -> list[Piece]:
        body = self._call.body if self._call is not None and not self._call.is_told else ""
        self._parser = self._call = None
        return [Piece("content", body + text)] if body + text else []


class _Call:
    """A call that is being written: its name once that is known, then its arguments, up to where they end."""

    def __init__(self, head: re.Pattern[str] | None) -> None:
        self.body = ""
        self.is_told = False
        self._head = head
        self._depth = 0
        self._is_text = self._is_escaped = self._is_over = False

    def feed(self, text: str) -> tuple[str | None, str] | None:
        """The name, if it is new, and what is new of the arguments."""
        self.body += text
        if self._head is None:
            return None
        if self.is_told:
            return None, self._arguments(text)
        found = self._head.match(self.body)
        if found is None or found.end() == len(self.body):
            return None
        self.is_told = True
        name = json.loads(f'"{found["name"]}"', strict=False) if '"' in self._head.pattern else found["name"]
        return name, self._arguments(self.body[found.end() :])

    def _arguments(self, text: str) -> str:
        """What of ``text`` belongs to the JSON object that the arguments are."""
        for i, char in enumerate(text):
            if self._is_over:
                return text[:i]
            if self._is_escaped:
                self._is_escaped = False
            elif self._is_text:
                self._is_escaped, self._is_text = char == "\\", char != '"'
                self._is_over = not self._is_text and not self._depth
            elif char == '"':
                self._is_text = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                self._is_over = self._depth <= 0
        return text


def _calls(value: Any) -> Iterable[tuple[str, str]]:
    """Names and arguments, as JSON, of what a region was parsed to."""
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            arguments = function.get("arguments", function.get("parameters", {}))
            yield (
                function["name"],
                arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False),
            )
