"""llama-server's ``timings``."""

from __future__ import annotations

from elastikv.engine.outputs import GenerationOutput, Timings
from elastikv.server.replies import timings


def output(*drafted: int) -> GenerationOutput:
    return GenerationOutput("a", [1, 2], "stop", 5, 2, None, Timings(3, 1.0, 2, 0.5, *drafted))


def test_drafts_are_counted_where_there_were_any() -> None:
    summed = timings([output(8, 3), output(4, 4)])
    assert (summed["draft_n"], summed["draft_n_accepted"]) == (12, 7)
    assert "draft_n" not in timings([output()])
