"""The memory of sequences in a context of llama.cpp: what can be cut, copied, shifted, and that nothing is lost."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from support.forward import random_ids
from support.interrupts import every_line

from elastikv import LLM
from elastikv.batch import Batch, SeqTokens
from elastikv.errors import CacheFull
from elastikv.memory.base import SavedSequence

pytest.importorskip("llama_cpp.llama_cpp", reason="llama-cpp-python is not installed", exc_type=ImportError)


def test_a_sequence_is_cut_where_it_can_be(open_llm: Callable[..., LLM]) -> None:
    for arch, anywhere in (("qwen3", True), ("qwen3_5", False)):
        llm = open_llm(arch)
        ids = random_ids(80, 300)
        llm.forward(ids[:50])
        assert llm.memory.checkpoint(0)
        llm.forward(ids[50:])
        assert llm.memory.cuts_anywhere is anywhere
        assert llm.memory.truncation_point(0, 70) == (70 if anywhere else 50)
        assert llm.memory.seq_rm(0, 70) is anywhere
        assert llm.memory.seq_cp(0, 1, 0, 50)
        assert llm.memory.seq_rm(0, 50)
        fresh = open_llm(arch)
        fresh.forward(ids[:50])
        wanted = fresh.forward(ids[50:60])
        for seq_id in (0, 1):
            torch.testing.assert_close(llm.forward(ids[50:60], seq_id), wanted, atol=1e-3, rtol=0)


def test_shared_cells_count_once(open_llm: Callable[..., LLM]) -> None:
    llm = open_llm()
    llm.forward(random_ids(200, 300))
    for seq_id in range(1, 6):
        assert llm.memory.seq_cp(0, seq_id)
    assert llm.stats().used_cells == 200
    assert llm.stats().capacity_cells == 256


@pytest.mark.parametrize("cells", ["f16", "f32"])
def test_a_gap_is_closed_by_rotating_k(cells: str, open_llm: Callable[..., LLM], gguf: Callable[[str], Path]) -> None:
    llm, ids = open_llm(kv_dtype=cells), random_ids(200, 300)
    with LLM(gguf("qwen3"), runtime="elastikv", n_ctx=4096, n_threads=1, kv_dtype=cells) as own:
        for each in (llm, own):
            each.forward(ids)
            assert each.memory.seq_rm(0, 50, 90)
        llm.memory.resize(1024)  # what is saved has been rotated
        assert llm.memory.n_tokens(0) == own.memory.n_tokens(0) == 160
        torch.testing.assert_close(llm.forward([5, 6]), own.forward([5, 6]), atol=5e-2, rtol=0)


def test_what_cannot_be_shifted_is_left_alone(open_llm: Callable[..., LLM]) -> None:
    """In C each of these would end the process, or move another sequence's tokens."""
    shared, packed, state = open_llm(), open_llm(kv_dtype="q8_0"), open_llm("qwen3_5")
    for llm in (shared, packed, state):
        llm.forward(random_ids(100, 300))
    assert shared.memory.seq_cp(0, 1)
    for llm in (shared, packed, state):
        assert not llm.memory.seq_rm(0, 10, 20)
        assert not llm.memory.seq_rm(0, 0, 20)
        assert not llm.memory.seq_add(0, 10, -1, -5)
        assert llm.memory.n_tokens(0) == 100


def test_memory_follows_what_is_used(open_llm: Callable[..., LLM]) -> None:
    llm = open_llm()
    at_start = llm.stats().committed_bytes
    for seq_id in range(4):
        llm.forward(random_ids(800, 300), seq_id)
    assert llm.stats().capacity_cells == 3328
    assert llm.memory.seq_rm(0)
    assert llm.stats().capacity_cells == 3328  # a copy for little
    assert llm.memory.seq_rm(1)
    assert llm.memory.seq_rm(2)
    assert llm.memory.shrink_to_fit(3) > 0  # as for a session that is idle
    assert llm.stats().capacity_cells == 1024
    assert llm.memory.seq_rm(3, 200)
    llm.memory.resize(4096)
    assert llm.memory.seq_cp(3, 4)
    assert llm.memory.seq_rm(4)
    assert llm.stats().capacity_cells == 256
    assert llm.stats().committed_bytes == at_start


OPERATIONS: dict[str, Callable[[LLM], object]] = {
    "decode": lambda llm: llm.engine.decode(Batch([SeqTokens(0, random_ids(400, 300), 1), SeqTokens(2, [5], 1)])),
    "cut": lambda llm: llm.memory.seq_rm(0, 50),
    "close a gap": lambda llm: llm.memory.seq_rm(0, 10, 20),
    "forget": lambda llm: llm.memory.seq_rm(0),
    "copy": lambda llm: llm.memory.seq_cp(0, 1, 0, 50),
    "checkpoint": lambda llm: llm.memory.checkpoint(0),
    "resize": lambda llm: llm.memory.resize(2048),
    "shrink": lambda llm: llm.memory.shrink_to_fit(),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # where C has called, or what is freed
@pytest.mark.parametrize("step", [31, pytest.param(7, marks=pytest.mark.slow)])
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize("arch", ["qwen3", "qwen3_5"])
def test_an_interrupt_at_any_line(
    arch: str, operation: Callable[[LLM], object], step: int, open_llm: Callable[..., LLM]
) -> None:
    made: list[LLM] = []

    def make() -> Callable[[], object]:
        for llm in made:
            llm.close()
        made[:] = [open_llm(arch)]
        made[0].forward(random_ids(50, 300))
        made[0].memory.checkpoint(0)
        made[0].forward(random_ids(200, 300), 1)
        return lambda: operation(made[0])

    make()()
    before, after = {0: 50, 1: 200}, {i: made[0].memory.n_tokens(i) for i in (0, 1, 2)}
    for _ in every_line(make, step=step):
        (llm,) = made
        llm.memory.rollback()
        llm.memory.check()
        for seq_id in (0, 1, 2):
            assert llm.memory.n_tokens(seq_id) in (before.get(seq_id, 0), after[seq_id], 0)
        assert torch.isfinite(llm.forward([1, 2, 3], 3)).all()
        assert llm.memory.shrink_to_fit() >= 0


class Plain:
    """Which tokens each sequence holds, and a number for each cell, shared or not."""

    def __init__(self) -> None:
        self.held: dict[int, list[tuple[int, int]]] = {}
        self._numbers = itertools.count()

    def append(self, seq_id: int, ids: list[int]) -> None:
        self.held.setdefault(seq_id, []).extend((token, next(self._numbers)) for token in ids)

    def tokens(self, seq_id: int) -> list[int]:
        return [token for token, _ in self.held.get(seq_id, [])]

    @property
    def n_cells(self) -> int:
        return len({cell for cells in self.held.values() for _, cell in cells})


@pytest.mark.parametrize(("arch", "seed"), [("qwen3", 0), ("qwen3", 1), ("qwen3_5", 2), ("gemma3", 3), ("mamba", 4)])
def test_two_hundred_operations_on_eight_sequences(arch: str, seed: int, open_llm: Callable[..., LLM]) -> None:
    random, plain = Random(seed), Plain()
    llm, fresh = open_llm(arch, kv_growth=None), open_llm(arch, kv_dynamic=False)

    def append(seq_id: int, n: int) -> None:
        ids = [random.randrange(300) for _ in range(n)]
        llm.forward(ids, seq_id)
        plain.append(seq_id, ids)

    def refused(seq_id: int) -> None:
        before = llm.stats().sequences
        llm.set_budget(llm.budget.committed_bytes)
        with pytest.raises(CacheFull):
            llm.memory.init_batch(Batch([SeqTokens(seq_id, [1] * (llm.memory.max_capacity + 1), 1)]), 512)
        llm.set_budget("none")
        assert llm.stats().sequences == before

    def cut(seq_id: int, n: int) -> None:
        point = llm.memory.truncation_point(seq_id, n)
        assert llm.memory.seq_rm(seq_id, point)
        plain.held[seq_id] = plain.held.get(seq_id, [])[:point]

    def copy(seq_id: int, n: int) -> None:
        target = random.randrange(8)
        point = llm.memory.truncation_point(seq_id, n)
        if point and target != seq_id and llm.memory.seq_cp(seq_id, target, 0, point):
            plain.held[target] = plain.held[seq_id][:point]

    def park(seq_id: int) -> None:
        tensors = {name: tensor.clone() for name, tensor in llm.memory.seq_tensors(seq_id).items()}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        held = plain.tokens(seq_id)
        assert llm.memory.seq_rm(seq_id)
        plain.held.pop(seq_id, None)
        if held:
            saved = SavedSequence(len(held), 0, shapes)
            llm.memory.seq_load(seq_id, saved, lambda out: [out[name].copy_(tensors[name]) for name in tensors])
            plain.append(seq_id, held)

    for step in range(200):
        seq_id = random.randrange(8)
        n_held = len(plain.tokens(seq_id))
        operation = random.choice(["append"] * 4 + ["cut", "copy", "park", "remove", "resize", "shrink", "refused"])
        if operation == "append":
            append(seq_id, random.choice([1, 1, 5, 60, 300]) if n_held < 900 else 1)
        elif operation == "cut":
            assert llm.memory.checkpoint(seq_id)
            append(seq_id, 3)
            cut(seq_id, random.randrange(n_held + 3))
        elif operation == "copy":
            copy(seq_id, n_held)
        elif operation == "park":
            park(seq_id)
        elif operation == "remove":
            assert llm.memory.seq_rm(seq_id)
            plain.held.pop(seq_id, None)
        elif operation == "resize" and plain.n_cells:
            llm.memory.resize(min(plain.n_cells + random.randrange(700), 4096))
        elif operation == "shrink":
            llm.shrink_to_fit()
        elif operation == "refused":
            refused(seq_id)
        llm.memory.check()
        assert [llm.memory.n_tokens(i) for i in range(8)] == [len(plain.tokens(i)) for i in range(8)]
        assert llm.stats().used_cells == plain.n_cells
        if step % 20 == 19:
            seq_id = max(range(8), key=lambda i: len(plain.tokens(i)))
            held = plain.tokens(seq_id)
            fresh.clear()
            wanted = fresh.forward([*held, 7])[-1]
            plain.append(seq_id, [7])
            torch.testing.assert_close(llm.forward([7], seq_id)[-1], wanted, atol=6e-2, rtol=0)
