"""What two requests have in common from the start, told by hashes of their text: nobody needs the tokenizer for it."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Collection, Hashable, Iterator
from itertools import accumulate

_PARTS = ("model", "instructions", "system", "tools", "messages", "input_prefix", "prompt", "input")
"""Of a body of any of the protocols: what becomes the prompt, in the order in which templates put it there."""

Marks = dict[int, int]
"""Hashes of a text's beginnings, the shortest first, and the bytes of each. Texts share them as far as they agree."""


def _block_ends() -> Iterator[int]:
    end = 0
    while end < 1 << 30:
        end += max(64, end // 32)
        yield end


BLOCK_ENDS = tuple(_block_ends())
"""Where a text has marks: after 64 bytes more than the last, beyond 2 KiB a 32nd more, some hundreds for a book."""


def marks_of(*parts: str) -> Marks:
    """Of the text of all ``parts`` together: where ``BLOCK_ENDS`` are, and at the end of each part.

    So what a conversation was a turn ago is among its marks, however short what was said then.
    """
    encoded = [part.encode(errors="surrogatepass") for part in parts]
    part_ends = list(accumulate(map(len, encoded)))
    data = memoryview(b"".join(encoded))
    hasher, marks, start = hashlib.blake2b(digest_size=8), {}, 0
    for end in sorted({*BLOCK_ENDS[: bisect_right(BLOCK_ENDS, len(data))], *part_ends} - {0}):
        hasher.update(data[start:end])
        marks[int.from_bytes(hasher.digest(), "big")] = end
        start = end
    return marks


def mark_of_session(name: str) -> int:
    """The mark of what a client calls its session; no text has it."""
    return int.from_bytes(hashlib.blake2b(name.encode(errors="replace"), digest_size=8, key=b"session").digest(), "big")


def prompt_parts(body: bytes) -> list[str]:
    """What a request's prompt will be of, as the client wrote it: a turn more is more of the same parts.

    Empty for a body that is not a JSON object; whoever answers it says what is wrong with it.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return []
    if not isinstance(request, dict):
        return []
    return [text for part in _PARTS if request.get(part) is not None for text in _written(request[part])]


def _written(part: object) -> list[str]:
    if isinstance(part, str):
        return [part + "\n"] if part else []
    if isinstance(part, list) and all(isinstance(item, dict) for item in part):
        return [json.dumps(item, ensure_ascii=False, sort_keys=True) + "\n" for item in part]
    return [json.dumps(part)]  # token ids, or several prompts


class HeldMarks:
    """The marks of the sessions of one replica, for its report; at most ``limit``, those of the newest sessions."""

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._of: dict[Hashable, Collection[int]] = {}

    def add(self, session: Hashable, marks: Collection[int]) -> None:
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
