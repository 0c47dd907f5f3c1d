"""llama-server's ``timings``."""

from __future__ import annotations

from elastikv.engine.outputs import Timings
from elastikv.server.figures import timings


def test_drafts_are_counted_where_there_were_any() -> None:
    summed = timings([Timings(3, 1.0, 2, 0.5, 8, 3), Timings(3, 1.0, 2, 0.5, 4, 4)])
    assert (summed["draft_n"], summed["draft_n_accepted"]) == (12, 7)
    assert "draft_n" not in timings([Timings(3, 1.0, 2, 0.5)])


def test_the_first_token_costs_no_step() -> None:
    told = timings([Timings(3, 1.0, 5, 2.0), Timings(3, 1.0, 1, 0.0)])
    assert (told["predicted_n"], told["predicted_per_second"], told["predicted_per_token_ms"]) == (6, 2, 500)
    one = timings([Timings(3, 1.0, 1, 0.0)])
    assert (one["predicted_per_second"], one["predicted_per_token_ms"]) == (0, 0)
