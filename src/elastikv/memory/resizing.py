"""Capacities of several streams at once: all of them change, or none does."""

from __future__ import annotations

from collections.abc import Sequence

from elastikv.errors import CacheFull
from elastikv.memory.budget import Budget
from elastikv.memory.stream import Stream

CapacityChange = tuple[Stream, int]


def refusal_of(changes: Sequence[CapacityChange], budget: Budget) -> CacheFull | None:
    """What the budget would say to all changes, one after the other, without making any."""
    added = peak = 0
    for stream, capacity in changes:
        if capacity > stream.cells.capacity:
            peak = max(peak, added + stream.storage.peak_bytes(capacity))
            added += stream.storage.added_bytes(capacity)
    return budget.refusal(peak)


def change_capacities(changes: Sequence[CapacityChange], budget: Budget) -> None:
    """CacheFull, or whatever else stops it: every stream is as before.

    Growths come first: what undoes them, a shrink, cannot fail.
    """
    refusal = refusal_of(changes, budget)
    if refusal:
        raise refusal
    grown: list[CapacityChange] = []
    try:
        for stream, capacity in changes:
            if capacity > stream.cells.capacity:
                before = stream.cells.capacity
                stream.set_capacity(capacity)
                grown.append((stream, before))
    except BaseException:
        for stream, before in reversed(grown):
            stream.set_capacity(before)
        raise
    for stream, capacity in changes:
        stream.set_capacity(capacity)
