"""May it grow: the ledger of committed bytes, and what the machine says to it."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any, Literal, Protocol

from elastikv.arguments import whole_number
from elastikv.errors import CacheFull, InvalidRequest
from elastikv.memory.growth import parse_size
from elastikv.memory.machine import MachineMemory, read_machine_memory

Account = Literal["kv", "compute"]

HOST = "cpu"
"""The pool that the processor computes in; other pools are called by their torch device."""

# Parts of the machine's memory that stay free: what `auto` leaves to everybody else, and the
# margin below which no growth is granted even where no limit was set.
_AUTO_HEADROOM = 10
_MACHINE_HEADROOM = 50


class Holder(Protocol):
    """Commits bytes under a budget, and says how many."""

    @property
    def committed_bytes(self) -> int:
        """Bytes that it has committed now."""
        ...


class Budget:
    """Bytes that KV memory and compute buffers together may commit.

    The ledger is read, not kept: whoever commits bytes is a holder, and is asked how many they are. So
    nothing that is interrupted half way can leave it wrong. Whoever is about to commit more calls
    ``require`` first, transients included. ``limit_bytes=None`` sets no limit of its own; the machine's
    holds always.

    The limit is for all pools of memory together (the host's, a device's); each pool has a ledger of its own, and what
    the machine has left there bounds it as well. machine: of the host's pool.
    """

    def __init__(
        self,
        limit_bytes: int | None = None,
        *,
        auto: bool = False,
        machine: Callable[[], MachineMemory] = read_machine_memory,
    ) -> None:
        self._limit = limit_bytes
        self._auto = auto
        self._machines = {HOST: machine}
        self._holders: dict[tuple[str, Account], list[weakref.ref[Holder]]] = {}
        self.peak_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        """Pickled, it is the same limit; who holds memory under it stays here."""
        return {**self.__dict__, "_holders": {}}

    @classmethod
    def parse(cls, text: str | int | None) -> Budget:
        """A budget from what a user writes. Raises InvalidRequest.

        ``'4GiB'`` or an int (bytes): a fixed limit; ``'auto'``: what the machine can spare, asked again before each
        growth; ``'none'`` or None: only the machine's own limit.
        """
        budget = cls()
        budget.set_limit(text)
        return budget

    def set_limit(self, text: str | int | None) -> None:
        """As ``parse``. A limit below what is committed takes nothing away, but grants nothing more."""
        limit, auto = None, text == "auto"
        if isinstance(text, str):
            limit = None if text in ("auto", "none") else parse_size(text)
        elif text is not None:
            limit = whole_number("a budget", text, remedy="give bytes, or a text like 4GiB, auto or none")
        if limit is not None and limit <= 0:
            raise InvalidRequest(f"a budget must be positive, got {text!r}")
        self._limit, self._auto = limit, auto

    def add_pool(self, pool: str, machine: Callable[[], MachineMemory]) -> None:
        """Ask ``machine`` what another pool has, and what is left of it, before anything is committed there.

        In a pool that was not added the limit alone holds, and its allocator's word.
        """
        self._machines[pool] = machine

    def watch(self, holder: Holder, account: Account = "kv", pool: str = HOST) -> None:
        """Count what ``holder`` has committed in a pool, for as long as it lives."""
        holders = self._holders.setdefault((pool, account), [])
        holders.append(weakref.ref(holder, holders.remove))

    @property
    def kv_bytes(self) -> int:
        """Bytes of cells and states that are committed now."""
        return self._sum(account="kv")

    @property
    def compute_bytes(self) -> int:
        """Bytes of compute buffers that are committed now."""
        return self._sum(account="compute")

    @property
    def committed_bytes(self) -> int:
        """Bytes that all holders have committed now."""
        return self._sum()

    def pool_bytes(self, pool: str) -> int:
        """Bytes that all holders have committed in one pool now."""
        return self._sum(pool=pool)

    @property
    def limit_bytes(self) -> int | None:
        """The limit in force; with ``auto`` what it would be now; None without a limit."""
        if not self._auto:
            return self._limit
        return self.committed_bytes + sum(self._machine_left(pool) for pool in self._machines)

    def left(self, pool: str = HOST) -> int:
        """Bytes that could be committed in a pool now."""
        machine = self._machine_left(pool)
        return machine if self._limit is None else min(machine, max(self._limit - self.committed_bytes, 0))

    def require(self, n_bytes: int, pool: str = HOST) -> None:
        """Before ``n_bytes`` more are committed in a pool: CacheFull if they may not be.

        The peak takes them as committed.
        """
        if n_bytes > 0 and n_bytes > self.left(pool):
            raise self._refusal(n_bytes, pool)
        self.peak_bytes = max(self.peak_bytes, self.committed_bytes + max(n_bytes, 0))

    def reset_peak(self) -> None:
        """Let ``peak_bytes`` begin again at what is committed now."""
        self.peak_bytes = self.committed_bytes

    def _sum(self, pool: str | None = None, account: Account | None = None) -> int:
        return sum(
            holder.committed_bytes
            for (its_pool, its_account), holders in list(self._holders.items())
            if pool in (None, its_pool) and account in (None, its_account)
            for ref in list(holders)
            if (holder := ref()) is not None
        )

    def _refusal(self, n_bytes: int, pool: str) -> CacheFull:
        """Not to be kept in the frame that raises it, or frame and refusal keep each other from being freed."""
        if self._limit is not None and self.committed_bytes + n_bytes > self._limit:
            left = max(self._limit - self.committed_bytes, 0)
            return CacheFull("kv-budget", asked=n_bytes, left=left, limit=self._limit)
        left = self._machine_left(pool)
        return CacheFull("machine", asked=n_bytes, left=left, limit=self.pool_bytes(pool) + left)

    def _machine_left(self, pool: str) -> int:
        if pool not in self._machines:
            return sys.maxsize
        machine = self._machines[pool]()
        headroom = machine.total_bytes // (_AUTO_HEADROOM if self._auto else _MACHINE_HEADROOM)
        return max(machine.available_bytes - headroom, 0)
