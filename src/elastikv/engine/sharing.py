"""One budget for several models: they take turns, and what is idle in one makes way for another."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from elastikv.errors import CacheFull
from elastikv.memory import Budget

if TYPE_CHECKING:
    from elastikv.engine.scheduler import Scheduler
    from elastikv.engine.sessions.store import SessionStore

T = TypeVar("T")

NONE_LEFT = object()
"""What ``next(concessions, NONE_LEFT)`` gives when there is nothing to give back any more."""

_TO_TAKE_A_TURN = 0.0005
"""Seconds in which a thread that waits for the lock wakes up and has it."""

_UNTIL_MEMORY_RETURNS = 0.005
"""Seconds between two looks whether a step can compute anything."""


class SharedBudget:
    """What several ``LLM`` commit together; each is given the same object.

        memory = SharedBudget("12GiB")
        with LLM("a.gguf", kv_budget=memory) as a, LLM("b.gguf", kv_budget=memory) as b:
            ...

    Their steps alternate. A model that is refused memory first takes spare capacity and idle sessions, its own and
    the others', the longest unused first. If that is not enough, its youngest request waits until one of any model
    has ended.

    kv_budget: as of ``LLM``. Raises InvalidRequest.
    """

    def __init__(self, kv_budget: str | int | None = "auto") -> None:
        self.budget = Budget.parse(kv_budget)
        self.is_admission_held = False
        """Whether a request was preempted, and none has ended and no memory come back since."""
        self.unload: Callable[[], bool] | None = None
        """Asked when nothing else is left: begins to close a model that nobody uses and returns True, or False.

        Whoever closes it says so by ``unload_ended``.
        """
        self._is_unloading = False
        self._lock = threading.RLock()
        self._schedulers: weakref.WeakSet[Scheduler] = weakref.WeakSet()
        self._in_line: set[int] = set()  # threads that wait for their turn

    def join(self, scheduler: Scheduler) -> None:
        """Another model."""
        self._schedulers.add(scheduler)

    def leave(self, scheduler: Scheduler) -> None:
        """A model was closed. May be called again."""
        self._schedulers.discard(scheduler)
        self.memory_returned()

    # Threads

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Nobody else computes, or changes memory, under this budget meanwhile."""
        thread = threading.get_ident()
        self._in_line.add(thread)
        try:
            with self._lock:
                self._in_line.discard(thread)
                yield
        finally:
            self._in_line.discard(thread)

    def pass_on(self, *, was_idle: bool) -> None:
        """Between two turns of a thread: let those that wait for theirs have it. was_idle: nothing was computed."""
        if was_idle:
            time.sleep(_UNTIL_MEMORY_RETURNS)
        elif self._in_line:
            time.sleep(_TO_TAKE_A_TURN)

    # For one model, in a turn

    def idle_bytes(self) -> int:
        """What parking every idle session would give back."""
        return sum(each.store.idle_bytes() for each in self._schedulers)

    def promised_bytes(self) -> int:
        """What the tokens of all running sessions still need."""
        return sum(each.store.promised_bytes() for each in self._schedulers)

    def make_room_for(self, work: Callable[[], T], asking: SessionStore | None = None) -> T:
        """Do ``work`` in a turn; as long as it is refused, let idle sessions go and try again.

        asking: for which model, if its sessions are among these. Raises the last CacheFull.
        """
        with self.turn():
            concessions = self.concessions(asking)
            while True:
                try:
                    return work()
                except CacheFull as refusal:
                    if refusal.resource == "n_ctx" or next(concessions, NONE_LEFT) is NONE_LEFT:
                        raise

    def concessions(self, asking: SessionStore | None) -> Iterator[None]:
        """One step after the other that gives something back and costs no request anything."""
        others = [each.store for each in self._others(asking)]
        for store in others:
            store.settle()
        stores = others if asking is None else [asking, *others]
        for store in stores:
            if store.shrink():
                yield
        while holders := [store for store in stores if store.idle()]:
            oldest = min(holders, key=lambda store: store.idle()[0].last_used)
            oldest.park(oldest.idle()[0])
            yield

    def more_may_come(self, asking: SessionStore) -> bool:
        """Whether others hold memory that they will give back unasked."""
        return self._is_unloading or any(each.store.is_running for each in self._others(asking))

    def ask_for_more(self, asking: SessionStore) -> bool:
        """As ``more_may_come``; if not, a model that nobody uses is closed."""
        if not self.more_may_come(asking) and self.unload is not None:
            self._is_unloading = True  # first: it may have ended before `unload` returns
            if not self.unload():
                self._is_unloading = False
        return self.more_may_come(asking)

    def unload_ended(self) -> None:
        """What ``unload`` began is done, or could not be."""
        self._is_unloading = False
        self.memory_returned()

    def memory_returned(self) -> None:
        """Preempted requests may try again."""
        self.is_admission_held = False

    def step_others(self, asking: SessionStore) -> bool:
        """Compute for those that ``asking`` waits for, which may have no thread of their own; False if none could."""
        has_computed = False
        for scheduler in self._others(asking):
            try:
                has_computed |= scheduler.step()
            except Exception as error:  # is raised to whoever waits for that request
                scheduler.fail_running(error)
        return has_computed

    def _others(self, asking: SessionStore | None) -> list[Scheduler]:
        return [each for each in self._schedulers if each.store is not asking]
