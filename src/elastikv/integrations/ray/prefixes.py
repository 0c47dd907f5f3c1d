"""What two requests have in common from the start, told by hashes of their text: nobody needs the tokenizer for it."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Collection, Hashable, Iterator

_PARTS = ("model", "instructions", "system", "tools", "messages", "input_prefix", "prompt", "input")
"""Of a body of any of the protocols: what becomes the prompt, in the order in which templates put it there."""

Marks = tuple[int, ...]
"""Hashes of a text's beginnings, the shortest first. Texts share marks as far as they are the same."""


def _mark_ends() -> Iterator[int]:
    end = 0
    while end < 1 << 30:
        end += max(64, end // 32)
        yield end


MARK_ENDS = tuple(_mark_ends())
"""Bytes that each mark stands for: 64 more than the last, beyond 2 KiB a 32nd more, so that a book has hundreds."""


def marks_of(text: str) -> Marks:
    """A mark for each beginning of ``text`` that is as long as ``MARK_ENDS`` says."""
    data, start = memoryview(text.encode(errors="surrogatepass")), 0
    hasher, marks = hashlib.blake2b(digest_size=8), []
    for end in MARK_ENDS[: bisect_right(MARK_ENDS, len(data))]:
        hasher.update(data[start:end])
        marks.append(int.from_bytes(hasher.digest(), "big"))
        start = end
    return tuple(marks)


def mark_of_session(name: str) -> int:
    """The mark of what a client calls its session; no text has it."""
    return int.from_bytes(hashlib.blake2b(name.encode(errors="replace"), digest_size=8, key=b"session").digest(), "big")


def prompt_text(body: bytes) -> str:
    """What a request's prompt will begin with, as the client wrote it: a turn more is more of the same text.

    Empty for a body that is not a JSON object; whoever answers it says what is wrong with it.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(request, dict):
        return ""
    return "".join(_written(request[part]) for part in _PARTS if request.get(part) is not None)


def _written(part: object) -> str:
    if isinstance(part, str):
        return part + "\n" if part else ""
    items = part if isinstance(part, list) else [part]
    return "".join(json.dumps(item, ensure_ascii=False, sort_keys=True) + "\n" for item in items)


class HeldMarks:
    """The marks of the sessions of one replica, for its report; at most ``limit``, those of the newest sessions."""

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._of: dict[Hashable, Marks] = {}

    def add(self, session: Hashable, marks: Marks) -> None:
        """A session, by whatever tells it from others, holds now what a request with these marks has put there."""
        self._of.pop(session, None)
        self._of[session] = marks

    def keep(self, sessions: Collection[Hashable]) -> None:
        """Forget all sessions but these."""
        self._of = {session: marks for session, marks in self._of.items() if session in sessions}

    def report(self) -> list[int]:
        """Each mark once."""
        marks = dict.fromkeys(mark for session in reversed(self._of.values()) for mark in session)
        return list(marks)[: self._limit]
