from __future__ import annotations

import pytest

from elastikv.memory.cells import StreamCells


@pytest.mark.parametrize(
    ("p0", "p1", "rows"),
    [
        (0, -1, (0, 10)),
        (5, -1, (0, 10)),
        (7, 9, (2, 4)),
        (12, 99, (7, 10)),
        (15, -1, (10, 10)),
        (0, 5, (0, 0)),
        (9, 7, (4, 4)),
    ],
)
def test_rows_of_positions(p0: int, p1: int, rows: tuple[int, int]) -> None:
    assert StreamCells(first=5, used=10).rows(p0, p1) == rows


def test_removing_the_front_keeps_positions_and_the_middle_does_not() -> None:
    cells = StreamCells(first=5, used=10)
    cells.remove(0, 3)
    assert (cells.first, cells.used, cells.end) == (8, 7, 15)
    cells.remove(2, 4)
    assert (cells.first, cells.used, cells.end) == (8, 5, 13)
    cells.remove(4, 5)
    assert (cells.first, cells.used, cells.end) == (8, 4, 12)


def test_check_notices_what_cannot_be() -> None:
    with pytest.raises(AssertionError, match="-1 cells"):
        StreamCells(used=-1).check()
