"""A context that grows: create, copy, swap, with whole contexts of llama.cpp.

    state to host     old, state
    free old               state          the lowest peak: never two contexts
    create new             state, new
    restore                        new

Where the new one cannot be made, one of the old size is. Should that fail as well, or be interrupted, the state stays
on the host, and the next use makes the context again: a refusal loses nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from elastikv.errors import CacheFull
from elastikv.memory import Budget
from elastikv.memory.budget import HOST, Account
from elastikv.runtimes.llama_cpp.context import NOTHING, Context, ContextBytes, ContextSize

MakeContext = Callable[[ContextSize], Context]
Expect = Callable[[ContextSize], ContextBytes]


class _Part:
    """A holder of the budget's: what is committed in one pool for one account."""

    def __init__(self) -> None:
        self.committed_bytes = 0


class GrowingContext:
    """The context that is there now. Raises CacheFull if not even the first one may be made.

    expect: what a context of a size would hold. generation: how often it was replaced.
    """

    def __init__(self, make: MakeContext, expect: Expect, size: ContextSize, budget: Budget) -> None:
        self.size = size
        self.generation = 0
        self._make = make
        self._expect = expect
        self._budget = budget
        self._parts: dict[tuple[Account, str], _Part] = {}
        self._context: Context | None = None
        self._state: np.ndarray | None = None
        """What sequences hold, while there is no context."""
        self._forgotten: list[int] = []
        self._require(size, 0)
        self._open(size)

    @property
    def now(self) -> Context:
        """The context. Raises CacheFull if the last resize left none, and it cannot be made again yet."""
        if self._context is None:
            self._open(self.size)
            assert self._context is not None
        return self._context

    @property
    def n_bytes(self) -> ContextBytes:
        """What it holds."""
        return self._context.n_bytes if self._context else NOTHING

    def expected_bytes(self, size: ContextSize) -> int:
        """What cells and states of a context of this size take, in all pools."""
        return self._expect(size).kv

    def resize(self, size: ContextSize) -> None:
        """Replace it by one of another size that holds the same. Raises CacheFull, with nothing changed."""
        context, before = self.now, self.size
        self._require(size, context.state_bytes())
        self._state, self._context = context.state(), None
        context.close()
        try:
            self._open(size)
        except BaseException:
            with suppress(CacheFull):
                self._open(before)
            raise

    def forget(self, number: int) -> None:
        """Remove a sequence, now or as soon as there is a context again."""
        if self._context is None:
            self._forgotten.append(number)
        else:
            self._context.remove(number, -1)

    def set_threads(self, n_threads: int) -> None:
        """Let the context that is there compute on so many cores."""
        if self._context is not None:
            self._context.set_threads(n_threads)

    def close(self) -> None:
        """Give everything back."""
        if self._context is not None:
            self._context.close()
        self._state = None
        self._count(NOTHING)

    def _require(self, size: ContextSize, state_bytes: int) -> None:
        """The state is on the host before the old context is freed, and until the new one has it."""
        expected, held = self._spread(self._expect(size)).by_pool(), self.n_bytes.by_pool()
        for pool in {HOST, *expected}:
            state = state_bytes if pool == HOST else 0
            self._budget.require(max(expected[pool] - held[pool], 0) + state, pool)

    def _open(self, size: ContextSize) -> None:
        self._count(NOTHING)
        try:
            context = self._make(size)
        except MemoryError as refusal:
            asked, left = self._expect(size).kv, self._budget.left()
            raise CacheFull("machine", asked=asked, left=left, limit=None) from refusal
        try:
            self._count(context.n_bytes)
            if self._state is not None:
                context.restore(self._state)
            for number in self._forgotten:
                context.remove(number, -1)
        except BaseException:
            context.close()
            self._count(NOTHING)
            raise
        self._context, self.size, self.generation = context, context.size, self.generation + 1
        self._state, self._forgotten = None, []
        self._count(context.n_bytes)

    def _count(self, n_bytes: ContextBytes) -> None:
        state = 0 if self._state is None else len(self._state)
        kv = Counter({HOST: state}) + Counter(n_bytes.cells) + Counter(n_bytes.states)
        by_account: dict[Account, Counter[str]] = {"kv": kv, "compute": Counter(n_bytes.compute)}
        for account, by_pool in by_account.items():
            for pool in {*by_pool, *(pool for of, pool in self._parts if of == account)}:
                self._part(account, pool).committed_bytes = by_pool[pool]

    def _part(self, account: Account, pool: str) -> _Part:
        if (account, pool) not in self._parts:
            part = self._parts[account, pool] = _Part()
            self._budget.watch(part, account, pool)
        return self._parts[account, pool]

    def _spread(self, expected: ContextBytes) -> ContextBytes:
        """Cells that were simulated lie in pools as those of the context do that is there."""
        held = self.n_bytes.cells
        total, wanted = sum(held.values()), sum(expected.cells.values())
        if len(held) < 2 or not total:
            return expected
        cells = {pool: wanted * n // total for pool, n in held.items()}
        return ContextBytes(cells, expected.states, expected.compute)
