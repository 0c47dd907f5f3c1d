"""Errors say what happened, and cross process boundaries whole."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest

from elastikv import errors
from elastikv.engine.outputs import GenerationOutput, Timings

FULL = errors.CacheFull("kv-budget", asked=5, left=3, limit=10)
OUTPUT = GenerationOutput("text", [1, 2], None, 4, 2, None, Timings(2, 0.5, 2, 0.1))
MADE: dict[type[errors.ElastikvError], errors.ElastikvError] = {
    errors.CacheFull: FULL,
    errors.GenerationCut: errors.GenerationCut(OUTPUT, FULL),
    errors.QueueFull: errors.QueueFull(3, 1.5),
    errors.PromptTooLong: errors.PromptTooLong(9, 8),
}


def tree(kind: type[errors.ElastikvError] = errors.ElastikvError) -> Iterator[type[errors.ElastikvError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from tree(below)


def seen(error: BaseException) -> tuple:
    attributes = {name: seen(value) if isinstance(value, Exception) else value for name, value in vars(error).items()}
    return type(error), str(error), error.args, attributes


@pytest.mark.parametrize("kind", list(tree()))
def test_every_error_survives_pickling_and_copying(kind: type[errors.ElastikvError]) -> None:
    error = MADE.get(kind) or kind("what went wrong")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert seen(twin) == seen(error)
        assert isinstance(twin, ValueError) == isinstance(error, ValueError)


def test_the_documented_tree_is_the_tree() -> None:
    documented = errors.__doc__ or ""
    assert all(kind.__name__ in documented for kind in tree() if kind.__module__ == errors.__name__)


def test_a_refusal_says_what_is_left_of_what() -> None:
    error = errors.CacheFull("kv-budget", asked=4096, left=1024, limit=2048)
    assert "asked for 4 KiB more, 1 KiB left of 2 KiB; raise --kv-budget" in str(error)


def test_a_refusal_by_the_system_claims_nothing_about_what_is_left() -> None:
    """It refused for reasons of its own, such as a limit on address space (ulimit -v)."""
    error = errors.CacheFull("machine", asked=4096, left=1 << 40, limit=None)
    assert "asked for 4 KiB more, refused by the system; free memory" in str(error)
