"""Contexts of llama.cpp that grow and shrink hold the bits of one that has its full size from the start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.forward import random_ids
from support.llama_cpp_shapes import OTHERS, OWN

from elastikv import LLM, SamplingParams

pytest.importorskip("llama_cpp.llama_cpp", reason="llama-cpp-python is not installed", exc_type=ImportError)

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
ARCHITECTURES = pytest.mark.parametrize("arch", [*OWN, *OTHERS])


def assert_same(arch: str, found: torch.Tensor, wanted: torch.Tensor) -> None:
    """Bit for bit; but a window's cells have another order after a copy, so that sums are rounded otherwise."""
    if arch == "gemma3":
        torch.testing.assert_close(found, wanted, atol=1e-2, rtol=0)
    else:
        assert torch.equal(found, wanted)


CALLS = {
    "one sequence": [(0, 100), (0, 1), (0, 300), (0, 500), (0, 1), (0, 900), (0, 2)],
    "eight": [(0, 100), (1, 300), (0, 500), *((seq_id, 9) for seq_id in range(2, 8)), (1, 700), (5, 1)],
}


@ARCHITECTURES
@pytest.mark.parametrize("cells", ["f16", "q8_0"])
@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
def test_growing_gives_the_bits_of_a_static_context(
    calls: list[tuple[int, int]], arch: str, cells: str, open_llm: Callable[..., LLM]
) -> None:
    grown, static = open_llm(arch, kv_dtype=cells), open_llm(arch, kv_dtype=cells, kv_dynamic=False)
    sizes = []
    for step, (seq_id, n) in enumerate(calls):
        ids = random_ids(n, 300, seed=step)
        assert_same(arch, grown.forward(ids, seq_id), static.forward(ids, seq_id))
        grown.memory.check()
        sizes.append(grown.stats().capacity_cells)
    assert sizes[0] == 256
    assert sizes == sorted(sizes)
    assert len(set(sizes)) >= 4
    assert static.stats().capacity_cells == 4096


@pytest.mark.parametrize("arch", OWN)
def test_text_is_that_of_our_own_kernels(arch: str, gguf: Callable[[str], Path], open_llm: Callable[..., LLM]) -> None:
    prompt = random_ids(60, 300)
    with LLM(gguf(arch), runtime="elastikv", n_ctx=4096, kv_dtype="f32") as own:
        wanted = own.forward(prompt)[-1].log_softmax(-1)
    found = open_llm(arch, kv_dtype="f32").forward(prompt)[-1].log_softmax(-1)
    torch.testing.assert_close(found, wanted, atol=2e-2, rtol=0)  # its flash attention rounds to 16 bits


@ARCHITECTURES
def test_shrinking_parking_and_restoring_lose_nothing(arch: str, open_llm: Callable[..., LLM], tmp_path: Path) -> None:
    llm, other = open_llm(arch), open_llm(arch)
    ids = random_ids(600, 300)
    for each in (llm, other):
        each.forward(ids)
    llm.forward(random_ids(500, 300, seed=3), seq_id=1)
    assert llm.memory.seq_rm(1)
    before = llm.stats().capacity_cells
    assert llm.shrink_to_fit() > 0
    assert llm.stats().capacity_cells < before
    assert_same(arch, llm.forward([5, 6, 7]), other.forward([5, 6, 7]))

    other.memory.seq_rm(0)
    llm.memory.seq_rm(0)
    (first,), (same,) = llm.generate([ids[:50]], GREEDY), other.generate([ids[:50]], GREEDY)
    assert first.token_ids == same.token_ids
    session = llm.scheduler.sessions()[0].id
    llm.scheduler.store.save(session, tmp_path / "session")
    llm.clear()
    assert llm.memory.seq_ids() == []
    llm.scheduler.store.load(tmp_path / "session")
    (again,) = llm.generate([[*ids[:50], *first.token_ids]], GREEDY)
    (whole,) = other.generate([[*ids[:50], *first.token_ids]], GREEDY)
    assert again.cached_tokens > 50
    assert again.token_ids == whole.token_ids


def test_many_sessions_generate_together(open_llm: Callable[..., LLM]) -> None:
    llm, alone = open_llm(), open_llm()
    prompts = [random_ids(20 + 7 * i, 300, seed=i) for i in range(9)]
    together = llm.generate(prompts, GREEDY)
    for prompt, output in zip(prompts, together, strict=True):
        alone.clear()
        assert alone.generate([prompt], GREEDY)[0].token_ids == output.token_ids
