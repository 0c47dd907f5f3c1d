"""Ctrl-C at any line of a decode or of a step: the memory is sound, and the next text is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.history_model import BYTES_PER_CELL, Rig, expected_tokens
from support.interrupts import every_line

from elastikv.batch import Batch, SeqTokens
from elastikv.engine.params import SamplingParams

EVERY = pytest.param(1, marks=pytest.mark.slow)
KINDS = pytest.mark.parametrize(("is_hybrid", "storage"), [(False, "mmap"), (False, "copy"), (True, "mmap")])
GREEDY = SamplingParams(temperature=0, max_tokens=6)
HELD = {0: [(3 * i) % 384 for i in range(20)], 1: [(5 * i) % 384 for i in range(40)]}


@pytest.mark.parametrize("step", [31, EVERY])
@KINDS
def test_a_decode(is_hybrid: bool, storage: str, step: int) -> None:
    """It grows one sequence, opens another, and takes several ubatches."""
    rigs: list[Rig] = []
    batch = Batch([SeqTokens(0, HELD[1]), SeqTokens(1, [7]), SeqTokens(2, [1, 2, 3])])

    def make() -> Callable[[], object]:
        rigs[:] = [Rig(is_hybrid=is_hybrid, storage=storage)]
        rigs[0].engine.decode(Batch([SeqTokens(seq_id, ids) for seq_id, ids in HELD.items()]))
        return lambda: rigs[0].engine.decode(batch)

    n_runs = n_done = 0
    for _ in every_line(make, step=step):
        (rig,) = rigs
        rig.memory.rollback()  # nothing, unless the interrupt came while something was undone
        rig.memory.check()
        is_done = 2 in rig.memory.seq_ids()
        n_runs, n_done = n_runs + 1, n_done + is_done
        n_new = {entry.seq_id: len(entry.token_ids) if is_done else 0 for entry in batch.entries}
        assert [rig.memory.seq_pos_max(i) + 1 for i in range(3)] == [20 + n_new[0], 40 + n_new[1], n_new[2]]
        if not is_done:
            rig.engine.decode(batch)
        logits = rig.engine.decode(Batch([SeqTokens(seq_id, [9]) for seq_id in range(3)]))
        sequences = [[*HELD[0], *HELD[1], 9], [*HELD[1], 7, 9], [1, 2, 3, 9]]
        assert logits.argmax(1).tolist() == [expected_tokens(tokens, 1)[0] for tokens in sequences]
        rig.close()
    assert n_done <= n_runs // 10 + 1, "only an interrupt at the very end may come too late"


def steps_of_every_kind(rig: Rig) -> Callable[[], object]:
    """Requests start, share a prefix, grow, are refused and preempted; sessions are parked and restored."""
    story = [(11 * i) % 384 for i in range(70)]
    rig.run(rig.scheduler.submit(story, GREEDY), rig.scheduler.submit([*range(30)], GREEDY))
    rig.budget.set_limit(rig.workspace.committed_bytes + 100 * BYTES_PER_CELL + 2 * 4096)
    for prompt in ([*story[:60], 1, 2], [*range(100, 130)], [*story[:69], 5]):
        rig.scheduler.submit(prompt, SamplingParams(temperature=0, max_tokens=12))
    return lambda: [rig.scheduler.step() for _ in range(8)]


@pytest.mark.parametrize("step", [211, pytest.param(3, marks=pytest.mark.slow)])
@KINDS
def test_a_step(tmp_path: Path, is_hybrid: bool, storage: str, step: int) -> None:
    """A step has thousands of lines: each of the kinds takes others of them."""
    first = 2 * is_hybrid + (storage == "copy")
    rigs: list[Rig] = []

    def make() -> Callable[[], object]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        rigs[:] = [Rig(is_hybrid=is_hybrid, storage=storage, park_dir=folder, n_parallel=3)]
        return steps_of_every_kind(rigs[0])

    for n in every_line(make, step=step, first=first):
        (rig,) = rigs
        interrupted = list(rig.scheduler._requests)
        if n % 2:
            for request in interrupted:
                rig.scheduler.abort(request)
                rig.scheduler.abort(request)
            rig.memory.check()
            assert not rig.scheduler.has_work
        prompts = [[*range(100, 160), 3], [(11 * i) % 384 for i in range(75)]]
        requests = [rig.scheduler.submit(prompt, GREEDY) for prompt in prompts]
        rig.run(*requests, *interrupted)
        for request in [*requests, *interrupted]:
            output = request.output(0.0)
            assert output.token_ids == expected_tokens(request.token_ids[: request.n_prompt], len(output.token_ids))
            assert output.finish_reason or request.error
        assert {session.state for session in rig.scheduler.store} <= {"idle", "parked"}
        known = {session.seq_id for session in rig.scheduler.store}
        assert set(rig.memory.seq_ids()) <= known, "cells of no session"
        rig.close()
