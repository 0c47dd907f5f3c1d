"""Ctrl-C at every line of a piece of work."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import elastikv

_ROOT = Path(elastikv.__file__).parent
_ROOMS = tuple(str(_ROOT / room) for room in ("memory/", "engine/", "runtimes/llama_cpp/", "batch.py"))
# A line in a loop is interrupted in its first rounds only.
_ROUNDS = 3

Work = Callable[[], object]
Line = tuple[str, int]


def every_line(make: Callable[[], Work], *, step: int = 1, first: int = 0) -> Iterator[int]:
    """Make the work afresh and raise KeyboardInterrupt before a line of memory, engine or batch.

    Every line that the work comes to gets its turn, with ``step`` every ``step``-th from ``first`` on. Yields numbers.
    """
    seen: Counter[Line] = Counter()
    chosen = []
    for n, line in enumerate(_lines_of(make())):
        seen[line] += 1
        if seen[line] <= _ROUNDS:
            chosen.append(n)
    for n in chosen[first::step]:
        if _interrupt_at(n, make()):
            yield n


def _lines_of(work: Work) -> list[Line]:
    lines: list[Line] = []
    _traced(work, lambda frame: lines.append((frame.f_code.co_filename, frame.f_lineno)))
    return lines


def _interrupt_at(n: int, work: Work) -> bool:
    """False if the work is done before it comes to so many lines."""
    n_left = n

    def count(frame: FrameType) -> None:
        nonlocal n_left
        if n_left == 0:
            raise KeyboardInterrupt
        n_left -= 1

    try:
        _traced(work, count)
    except KeyboardInterrupt:
        return True
    return False


def _traced(work: Work, on_line: Callable[[FrameType], None]) -> None:
    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            on_line(frame)
        return trace if frame.f_code.co_filename.startswith(_ROOMS) else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
