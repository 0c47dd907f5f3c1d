from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastikv.errors import InvalidRequest
from elastikv.memory import Growth, parse_growth, parse_size
from elastikv.memory.growth import offers

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def test_worked_example_of_qwen3_5_27b() -> None:
    growth = parse_growth("double:1GiB")
    for n_tokens, n_bytes in ((100, 16 * MIB), (6_000, 512 * MIB), (80_000, 5 * GIB)):
        cells = growth.capacity_after_fill(n_tokens, initial=256, n_ctx=131_072, bytes_per_cell=64 * KIB)
        assert cells * 64 * KIB == n_bytes


@pytest.mark.parametrize("n_batch", [1, 7, 512, 2048, 100_000])
def test_the_worked_example_does_not_depend_on_how_the_prompt_is_cut(n_batch: int) -> None:
    cells = parse_growth("double:1GiB").capacity_after_fill(
        80_000, initial=256, n_ctx=131_072, bytes_per_cell=64 * KIB, n_batch=n_batch
    )
    assert cells == 81_920


def test_step_goes_to_the_next_multiple_and_starts_at_the_initial_capacity() -> None:
    growth = parse_growth("step:256")
    sizes = {"n_ctx": 10_000, "bytes_per_cell": 1}
    assert growth.capacity_for(1, 0, initial=1000, **sizes) == 1000
    assert growth.capacity_for(1001, 1000, initial=1000, **sizes) == 1024
    assert growth.capacity_for(1025, 1024, initial=1000, **sizes) == 1280
    assert growth.capacity_for(9_990, 1024, initial=1000, **sizes) == 9_984 + 16


def test_exact_is_what_is_needed_in_whole_pages() -> None:
    growth = parse_growth("exact")
    assert growth.capacity_for(100, 0, initial=256, n_ctx=1000, bytes_per_cell=1) == 100
    assert growth.capacity_for(101, 100, initial=256, n_ctx=1000, bytes_per_cell=1, page_cells=4) == 104


def test_what_fits_stays_and_more_than_the_limit_is_an_error() -> None:
    growth = parse_growth("double:1KiB")
    assert growth.capacity_for(10, 64, initial=8, n_ctx=100, bytes_per_cell=16) == 64
    with pytest.raises(ValueError, match="n_ctx is 100"):
        growth.capacity_for(101, 64, initial=8, n_ctx=100, bytes_per_cell=16)


@given(
    kind=st.sampled_from(["double", "step", "exact"]),
    amount=st.integers(1, 5000),
    n_needed=st.integers(1, 3000),
    current=st.integers(0, 3000),
    initial=st.integers(1, 600),
    slack=st.integers(0, 2000),
    bytes_per_cell=st.integers(1, 300),
    page_cells=st.integers(1, 170),
)
def test_capacity_is_between_what_is_needed_and_the_limit(
    kind: str, amount: int, n_needed: int, current: int, initial: int, slack: int, bytes_per_cell: int, page_cells: int
) -> None:
    n_ctx = max(n_needed, current) + slack
    capacity = Growth(kind, amount).capacity_for(  # type: ignore[arg-type]
        n_needed, current, initial=initial, n_ctx=n_ctx, bytes_per_cell=bytes_per_cell, page_cells=page_cells
    )
    assert max(n_needed, current) <= capacity <= n_ctx


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("4096", 4096), ("16B", 16), ("1k", KIB), ("512MiB", 512 * MIB), ("1.5G", 3 * GIB // 2), (" 4 GB ", 4 * GIB)],
)
def test_sizes(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize("text", ["", "GiB", "-1G", "1XB", "1 2", "4iB", "1e9"])
def test_malformed_sizes(text: str) -> None:
    with pytest.raises(InvalidRequest, match="not a size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "double", "double:", "double:0", "step", "step:0", "step:1.5", "exact:3", "fast"])
def test_malformed_policies(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_growth(text)


def test_a_policy_reads_back_what_it_prints() -> None:
    for text in ("double:1GiB", "step:256", "exact"):
        growth = parse_growth(text)
        assert parse_growth(str(growth)) == growth


@pytest.mark.parametrize(
    ("needed", "wanted", "n_spare", "expected"),
    [
        ([257], [512], 200, [[512], [357], [257]]),
        ([257], [4096], 0, [[4096], [257]]),
        ([10, 300], [256, 340], 100, [[256, 340], [60, 340], [10, 300]]),
        ([10, 300], [60, 340], 100, [[60, 340], [10, 300]]),
        ([10], [10], 100, [[10]]),
    ],
)
def test_between_what_is_wanted_and_what_is_needed_there_are_other_sizes(
    needed: list[int], wanted: list[int], n_spare: int, expected: list[list[int]]
) -> None:
    assert list(offers(needed, wanted, lambda: n_spare)) == expected
