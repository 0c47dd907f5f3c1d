"""From tokens to text that may be shown: whole characters only, and nothing that may yet be a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class StreamDecoder(Protocol):
    """Turns tokens into text one by one, keeping the bytes of an unfinished character to itself."""

    def push(self, token_id: int) -> str:
        """Text that has become certain with this token."""
        ...

    def flush(self) -> str:
        """What was held back, when no token follows."""
        ...


class TextStream:
    """The text of one generation.

    After ``stopped`` has become True the text is complete: it ends before the stop string.
    """

    def __init__(self, decoder: StreamDecoder, stops: Sequence[str] = ()) -> None:
        self._decoder = decoder
        self._stops = tuple(stops)
        self._held = ""
        self._shown: list[str] = []
        self.stop: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self.stop is not None

    @property
    def text(self) -> str:
        """All that ``push`` and ``flush`` have returned so far."""
        return "".join(self._shown)

    def push(self, token_id: int) -> str:
        """The text that has become certain with this token."""
        self._held += self._decoder.push(token_id)
        self._look_for_stop()
        n_certain = len(self._held) - (0 if self.stopped else self._n_possible_stop())
        return self._show(n_certain)

    def flush(self) -> str:
        """The rest, when no token follows."""
        if not self.stopped:
            self._held += self._decoder.flush()
            self._look_for_stop()
        return self._show(len(self._held))

    def _look_for_stop(self) -> None:
        """Truncate the held text at the first stop string; its start can only lie in held text."""
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            at, self.stop = min(found)
            self._held = self._held[:at]

    def _n_possible_stop(self) -> int:
        """Length of the longest end of the held text that a stop string begins with."""
        longest = max((len(stop) for stop in self._stops), default=0) - 1
        for n in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-n:]) for stop in self._stops):
                return n
        return 0

    def _show(self, n_chars: int) -> str:
        certain, self._held = self._held[:n_chars], self._held[n_chars:]
        if certain:
            self._shown.append(certain)
        return certain
