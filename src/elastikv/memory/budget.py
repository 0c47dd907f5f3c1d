"""May it grow: the ledger of committed bytes, and what the machine says to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from elastikv.errors import CacheFull, InvalidRequest
from elastikv.memory.growth import parse_size
from elastikv.memory.machine import MachineMemory, read_machine_memory

Account = Literal["kv", "compute"]

# Parts of the machine's memory that stay free: what `auto` leaves to everybody else, and the
# margin below which no growth is granted even where no limit was set.
_AUTO_HEADROOM = 10
_MACHINE_HEADROOM = 50


class Budget:
    """Bytes that KV memory and compute buffers together may commit.

    Whoever is about to commit bytes charges them first, transients included, and releases them
    after giving them back. ``limit_bytes=None`` sets no limit of its own; the machine's holds always.
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
        self._machine = machine
        self._accounts: dict[Account, int] = {"kv": 0, "compute": 0}
        self.peak_bytes = 0

    @classmethod
    def parse(cls, text: str | int | None) -> Budget:
        """``'4GiB'`` or an int (bytes): a fixed limit; ``'auto'``: what the machine can spare, asked again
        before each growth; ``'none'`` or None: only the machine's own limit. Raises InvalidRequest."""
        budget = cls()
        budget.set_limit(text)
        return budget

    def set_limit(self, text: str | int | None) -> None:
        """As ``parse``. A limit below what is committed takes nothing away, but grants nothing more."""
        limit, auto = None, False
        if isinstance(text, int):
            limit = text
        elif text == "auto":
            auto = True
        elif text not in (None, "none"):
            limit = parse_size(text)
        if limit is not None and limit <= 0:
            raise InvalidRequest(f"a budget must be positive, got {text!r}")
        self._limit, self._auto = limit, auto

    @property
    def kv_bytes(self) -> int:
        return self._accounts["kv"]

    @property
    def compute_bytes(self) -> int:
        return self._accounts["compute"]

    @property
    def committed_bytes(self) -> int:
        return self._accounts["kv"] + self._accounts["compute"]

    @property
    def limit_bytes(self) -> int | None:
        """The limit in force; with ``auto`` what it would be now; None without a limit."""
        return self.committed_bytes + self._machine_left() if self._auto else self._limit

    def left(self) -> int:
        """Bytes that a charge could have now."""
        machine = self._machine_left()
        return machine if self._limit is None else min(machine, max(self._limit - self.committed_bytes, 0))

    def refusal(self, n_bytes: int) -> CacheFull | None:
        """What ``charge(n_bytes)`` would raise, or None. Nothing is charged."""
        if n_bytes <= 0:
            return None
        if self._limit is not None and self.committed_bytes + n_bytes > self._limit:
            left = max(self._limit - self.committed_bytes, 0)
            return CacheFull("kv-budget", asked=n_bytes, left=left, limit=self._limit)
        left = self._machine_left()
        if n_bytes > left:
            return CacheFull("machine", asked=n_bytes, left=left, limit=self.committed_bytes + left)
        return None

    def charge(self, n_bytes: int, account: Account = "kv") -> None:
        """Take ``n_bytes`` out of the budget, or raise CacheFull and take nothing."""
        refusal = self.refusal(n_bytes)
        if refusal:
            raise refusal
        self._accounts[account] += n_bytes
        self.peak_bytes = max(self.peak_bytes, self.committed_bytes)

    def release(self, n_bytes: int, account: Account = "kv") -> None:
        """Put back bytes that were charged and are no longer committed."""
        if not 0 <= n_bytes <= self._accounts[account]:
            raise ValueError(f"{n_bytes} bytes released, but {account} holds {self._accounts[account]}")
        self._accounts[account] -= n_bytes

    def reset_peak(self) -> None:
        self.peak_bytes = self.committed_bytes

    def _machine_left(self) -> int:
        machine = self._machine()
        headroom = machine.total_bytes // (_AUTO_HEADROOM if self._auto else _MACHINE_HEADROOM)
        return max(machine.available_bytes - headroom, 0)
