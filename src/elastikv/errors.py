"""Every error elastikv raises on purpose. The tree is the documentation.

ElastikvError
├── CacheFull            memory was asked for and refused; nothing changed
├── GenerationCut        a generation ended early; carries what was generated
├── QueueFull            the scheduler takes no more waiting requests
├── EngineClosed         the engine is closing, or closed, or belongs to the process that this one was forked from
├── InvalidRequest       an argument is wrong (also a ValueError)
│   └── PromptTooLong    the prompt does not fit into n_ctx
└── ModelError           a model cannot be loaded
    ├── UnsupportedModel     a good file of an architecture that is not served
    │   └── NotInstalled         one that a package would serve which is not installed
    ├── HubError             a model of the Hugging Face Hub that cannot be had
    └── CorruptFile          a file that is truncated or altered
        └── SnapshotError    a saved session that cannot be restored here
"""

from __future__ import annotations

from typing import Any, Literal


class ElastikvError(Exception):
    """Base of all errors raised on purpose. ``str(error)`` is one line for the user.

    Picklable with all their attributes, for process pools.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # By default the constructor would be called with the message alone.
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(kind: type[ElastikvError], args: tuple[Any, ...], attributes: dict[str, Any]) -> ElastikvError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


Resource = Literal["n_ctx", "kv-budget", "machine"]

_KNOBS: dict[str, str] = {
    "n_ctx": "raise -c / n_ctx",
    "kv-budget": "raise --kv-budget / kv_budget",
    "machine": "free memory, lower --kv-growth, or use a smaller -ctk/-ctv",
}


class CacheFull(ElastikvError):
    """Growth was refused. Contents, capacities and budget are as before the call.

    Attributes:
        resource: what ran out: ``"n_ctx"`` (cells), ``"kv-budget"`` or ``"machine"`` (bytes).
        asked: how much more was asked for, in ``unit``.
        left: how much could have been given, in ``unit``.
        limit: the whole of it, in ``unit``; ``None`` where the operating system has refused without telling.
        unit: ``"cells"`` or ``"bytes"``.
        knob: what the user can turn to get more.
    """

    def __init__(self, resource: Resource, *, asked: int, left: int, limit: int | None) -> None:
        self.resource = resource
        self.asked = asked
        self.left = left
        self.limit = limit
        self.unit = "cells" if resource == "n_ctx" else "bytes"
        self.knob = _KNOBS[resource]
        # Without a limit it was the operating system that refused, whatever seemed to be left (ulimit -v, say).
        left_of = "refused by the system" if limit is None else f"{self._show(left)} left of {self._show(limit)}"
        super().__init__(f"KV cache is full ({resource}): asked for {self._show(asked)} more, {left_of}; {self.knob}")

    def _show(self, amount: int) -> str:
        return f"{amount} cells" if self.unit == "cells" else format_bytes(amount)


class GenerationCut(ElastikvError):
    """A generation was ended, by the budget (CacheFull) or by a shutdown (EngineClosed), as ``cause`` says.

    ``output`` holds all that was generated; the sequence stays usable.
    """

    def __init__(self, output: Any, cause: ElastikvError) -> None:
        self.output = output
        self.cause = cause
        super().__init__(f"generation was cut short: {cause}")


class QueueFull(ElastikvError):
    """The waiting queue is at its bound; ``retry_after`` is an estimate in seconds."""

    def __init__(self, n_waiting: int, retry_after: float) -> None:
        self.n_waiting = n_waiting
        self.retry_after = retry_after
        super().__init__(f"{n_waiting} requests are waiting already; retry in {retry_after:.0f} s")


class EngineClosed(ElastikvError):
    """The engine is closing, or closed, or belongs to the process that this one was forked from."""

    def __init__(self, message: str = "the engine is shutting down") -> None:
        super().__init__(message)


class InvalidRequest(ElastikvError, ValueError):
    """An argument is wrong; the message names it and the remedy."""


class PromptTooLong(InvalidRequest):
    """The prompt has more tokens than a sequence may ever hold."""

    def __init__(self, n_prompt_tokens: int, n_ctx: int) -> None:
        self.n_prompt_tokens = n_prompt_tokens
        self.n_ctx = n_ctx
        super().__init__(
            # Clients of llama-server know an overflow by these words.
            f"the prompt has {n_prompt_tokens} tokens, which exceeds the available context size of {n_ctx} (n_ctx); "
            "raise -c or shorten the prompt"
        )


class ModelError(ElastikvError):
    """A model cannot be loaded."""


class UnsupportedModel(ModelError):
    """The file is sound, but nothing here runs its architecture."""


class NotInstalled(UnsupportedModel):
    """A package is missing that would run it; the message says how to install it."""


class HubError(ModelError):
    """A model of the Hugging Face Hub cannot be had; the message says why, and what to do."""


class CorruptFile(ModelError):
    """A file is truncated, altered, or not what its name says."""


class SnapshotError(CorruptFile):
    """A saved session cannot be restored: another model, another layout, truncated or altered."""


def one_line(message: object) -> str:
    """What others' libraries say, which may be of several lines."""
    return " ".join(str(message).split())


def format_bytes(n_bytes: int) -> str:
    """``16777216`` -> ``'16 MiB'``: three significant digits, binary units."""
    value = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.4g} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} TiB"
