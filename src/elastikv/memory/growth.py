"""How big next. Pure integer arithmetic: no torch, no bytes touched, so that ``plan`` can ask too."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from elastikv.arguments import instance
from elastikv.errors import InvalidRequest

_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(?:I?B)?|B)?", re.IGNORECASE)


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is at least ``n``."""
    return -(-n // multiple) * multiple


def parse_size(text: str) -> int:
    """``'512MiB'``, ``'1.5G'``, ``'4096'`` -> bytes. Units are binary, with or without ``iB``.

    Raises InvalidRequest.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise InvalidRequest(f"{text!r} is not a size; write for example 512MiB or 4GiB")
    return int(float(match[1]) * _UNITS[(match[2] or "").upper()])


@dataclass(frozen=True, slots=True)
class Growth:
    """A growth policy.

    ``double``: double while the stream is smaller than ``amount`` bytes, then ``amount`` bytes at a time
    (the heuristic of llama.cpp pull request #21757). ``step``: the next multiple of ``amount`` cells.
    ``exact``: what is needed, rounded to whole pages; takes no notice of the initial capacity.
    """

    kind: Literal["double", "step", "exact"]
    amount: int = 0

    def __str__(self) -> str:
        return self.kind if self.kind == "exact" else f"{self.kind}:{self.amount}"

    def capacity_for(
        self, n_needed: int, current: int, *, initial: int, n_ctx: int, bytes_per_cell: int, page_cells: int = 1
    ) -> int:
        """The capacity (in cells) that a stream of capacity ``current`` should get to hold ``n_needed``.

        At least ``n_needed``, at most ``n_ctx`` (which must be at least ``n_needed``), never less
        than ``current``. ``page_cells``: cells that fill a page, for ``exact``.
        """
        if n_needed > n_ctx:
            raise ValueError(f"{n_needed} cells are needed but n_ctx is {n_ctx}")
        if n_needed <= current:
            return current
        if self.kind == "exact":
            wanted = round_up(n_needed, page_cells)
        elif self.kind == "step":
            wanted = max(round_up(n_needed, self.amount), initial)
        else:
            wanted = self._double_until(n_needed, current or initial, bytes_per_cell)
        return min(wanted, n_ctx)

    def _double_until(self, n_needed: int, capacity: int, bytes_per_cell: int) -> int:
        increment = max(1, self.amount // bytes_per_cell)
        while capacity < n_needed and capacity * bytes_per_cell < self.amount:
            capacity *= 2
        if capacity < n_needed:
            capacity += round_up(n_needed - capacity, increment)
        return capacity

    def capacity_after_fill(
        self, n_tokens: int, *, initial: int, n_ctx: int, bytes_per_cell: int, page_cells: int = 1, n_batch: int = 2048
    ) -> int:
        """The capacity after ``n_tokens`` were appended to a new stream, ``n_batch`` at a time."""
        capacity = 0
        for n_held in [*range(n_batch, n_tokens, n_batch), n_tokens]:
            capacity = self.capacity_for(
                n_held, capacity, initial=initial, n_ctx=n_ctx, bytes_per_cell=bytes_per_cell, page_cells=page_cells
            )
        return capacity


def offers(needed: Sequence[int], wanted: Sequence[int], n_spare: Callable[[], int]) -> Iterator[list[int]]:
    """Capacities to ask for together, one list after the other until one is granted; each at least ``needed``.

    First what the policy ``wanted``, then half of what is left (``n_spare``: cells that each could have beyond
    ``needed``), then just what is needed. Were there nothing in between, a tight budget would bring a resize,
    and a copy of everything, with every token.
    """
    yield (offer := list(wanted))
    for n_more in (n_spare() // 2, 0):
        before, offer = offer, [min(n + n_more, most) for n, most in zip(needed, wanted, strict=True)]
        if offer != before:
            yield offer


def parse_growth(text: str) -> Growth:
    """``'double:1GiB'``, ``'step:256'`` or ``'exact'`` -> Growth. Raises InvalidRequest."""
    instance("a growth policy", text, str, "a text like step:256")
    kind, _, argument = text.strip().partition(":")
    if kind == "exact" and not argument:
        return Growth("exact")
    if kind == "double" and _SIZE.fullmatch(argument.strip()) and parse_size(argument):
        return Growth("double", parse_size(argument))
    if kind == "step" and argument.isdecimal() and int(argument):
        return Growth("step", int(argument))
    raise InvalidRequest(f"{text!r} is not a growth policy; write double:<size>, step:<cells> or exact")
