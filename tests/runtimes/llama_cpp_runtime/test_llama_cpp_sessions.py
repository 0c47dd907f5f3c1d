"""Sessions over a context of llama.cpp: decoded together, parked, given back when idle, saved and loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.forward import random_ids

from elastikv import LLM, SamplingParams, SchedulerOptions
from elastikv.errors import SnapshotError

pytest.importorskip("llama_cpp.llama_cpp", reason="llama-cpp-python is not installed", exc_type=ImportError)

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


class Clock:
    """Stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("arch", ["qwen3", "qwen3_5", "gemma3"])
def test_idle_sessions_are_parked_and_come_back(arch: str, open_llm: Callable[..., LLM], tmp_path: Path) -> None:
    clock, twin = Clock(), open_llm(arch)
    options = SchedulerOptions(idle_drop_seconds=10, park_dir=tmp_path)
    llm = open_llm(arch, scheduler=options, clock=clock)
    at_start = llm.stats().committed_bytes
    ids = random_ids(600, 300)
    (first,) = llm.generate([ids], GREEDY)
    twin.generate([ids], GREEDY)
    clock.now = 11
    llm.step()
    stats = llm.scheduler.stats()
    assert (stats.n_idle, stats.n_parked, stats.n_parks) == (0, 1, 1)
    assert llm.stats().committed_bytes == at_start
    prompt = [*ids, *first.token_ids, 5, 6]
    (again,), (stayed,) = llm.generate([prompt], GREEDY), twin.generate([prompt], GREEDY)
    assert llm.scheduler.stats().n_restores == 1
    assert again.cached_tokens == stayed.cached_tokens == len(ids) + len(first.token_ids) - 1
    assert again.token_ids == stayed.token_ids


def test_idle_sessions_give_back_what_they_do_not_use(open_llm: Callable[..., LLM]) -> None:
    clock = Clock()
    llm = open_llm(scheduler=SchedulerOptions(idle_release_seconds=10), clock=clock)
    llm.generate([random_ids(300, 300)], GREEDY)
    llm.memory.resize(4096)
    clock.now = 11
    llm.step()
    assert llm.stats().capacity_cells == 512
    assert llm.scheduler.stats().n_idle == 1


def test_a_budget_for_a_few_serves_many(open_llm: Callable[..., LLM], tmp_path: Path) -> None:
    """Those that have no room wait, and idle ones are parked; the texts are those of a machine with room for all."""
    prompts = [random_ids(150 + 10 * i, 300, seed=i) for i in range(8)]
    roomy, tight = open_llm(), open_llm(scheduler=SchedulerOptions(n_parallel=8, park_dir=tmp_path))
    tight.set_budget(tight.budget.committed_bytes + (3 << 20))
    wanted = [roomy.generate([prompt], GREEDY)[0].token_ids for prompt in prompts]
    outputs = tight.generate(prompts, GREEDY)
    assert [output.token_ids for output in outputs] == wanted
    assert tight.budget.peak_bytes <= tight.budget.limit_bytes
    assert tight.scheduler.stats().n_refusals > 0


def test_sequences_are_decoded_in_one_call(open_llm: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    llm = open_llm()
    sizes: list[int] = []
    decode = type(llm.engine._contexts.now).decode
    monkeypatch.setattr(
        type(llm.engine._contexts.now),
        "decode",
        lambda self, tokens: (sizes.append(len({sequence for _, _, sequence, _ in tokens})), decode(self, tokens))[1],
    )
    llm.generate([random_ids(20, 300, seed=i) for i in range(4)], GREEDY)
    assert max(sizes) == 4
    assert len(sizes) < 2 * GREEDY.max_tokens


def test_a_session_of_another_cell_type_is_refused(open_llm: Callable[..., LLM], tmp_path: Path) -> None:
    """llama.cpp would take none of it, and say only 0."""
    packed, other = open_llm(kv_dtype="q8_0"), open_llm(kv_dtype="f16")
    packed.generate([random_ids(50, 300)], GREEDY)
    packed.scheduler.store.save(packed.scheduler.sessions()[0].id, tmp_path / "session")
    before = other.forward([1, 2, 3])
    with pytest.raises(SnapshotError, match="cell"):
        other.scheduler.store.load(tmp_path / "session")
    other.memory.seq_rm(0)
    assert torch.equal(other.forward([1, 2, 3]), before)


def test_a_saved_session_that_was_altered_is_refused(open_llm: Callable[..., LLM], tmp_path: Path) -> None:
    llm = open_llm()
    llm.generate([random_ids(50, 300)], GREEDY)
    llm.scheduler.store.save(llm.scheduler.sessions()[0].id, tmp_path / "session")
    raw = bytearray((tmp_path / "session").read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    (tmp_path / "session").write_bytes(raw)
    with pytest.raises(SnapshotError):
        llm.scheduler.store.load(tmp_path / "session")
    llm.memory.check()
