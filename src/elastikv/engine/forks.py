"""A process that was forked from one that computes cannot compute: the threads of OpenMP stay behind."""

from __future__ import annotations

import os

from elastikv.errors import EngineClosed

_has_computed = False
_is_stranded = False


def about_to_compute() -> None:
    """From now on this process has threads that no fork of it will have. Raises EngineClosed in such a fork."""
    global _has_computed
    require_threads()
    _has_computed = True


def require_threads() -> None:
    """Raise EngineClosed in a fork of a process that computes."""
    if _is_stranded:
        raise EngineClosed(
            "this process was forked from one that runs a model, and would hang; start it with multiprocessing's "
            '"spawn" or "forkserver", or fork before the first LLM is made'
        )


def is_stranded() -> bool:
    """Whether this is a fork of a process that computes."""
    return _is_stranded


def _after_fork_in_child() -> None:
    global _is_stranded
    _is_stranded = _is_stranded or _has_computed


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
