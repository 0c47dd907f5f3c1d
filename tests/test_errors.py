from __future__ import annotations

from elastikv.errors import CacheFull


def test_a_refusal_says_what_is_left_of_what() -> None:
    error = CacheFull("kv-budget", asked=4096, left=1024, limit=2048)
    assert "asked for 4 KiB more, 1 KiB left of 2 KiB; raise --kv-budget" in str(error)


def test_a_refusal_by_the_system_claims_nothing_about_what_is_left() -> None:
    """It refused for reasons of its own, such as a limit on address space (ulimit -v)."""
    error = CacheFull("machine", asked=4096, left=1 << 40, limit=None)
    assert "asked for 4 KiB more, refused by the system; free memory" in str(error)
