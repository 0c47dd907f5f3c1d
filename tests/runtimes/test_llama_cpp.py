"""llama.cpp as a runtime: contexts that grow and shrink, bit for bit like one that has its full size from the start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.forward import random_ids
from support.tiny_models import tiny_model

from elastikv import LLM, SamplingParams
from elastikv.batch import Batch, SeqTokens
from elastikv.errors import CacheFull, InvalidRequest, UnsupportedModel
from elastikv.runtimes import find
from elastikv.runtimes.llama_cpp import runtime
from elastikv.runtimes.llama_cpp.context import Context
from tools.gguf_export import export_gguf

pytest.importorskip("llama_cpp", reason="the runtime llama.cpp: llama-cpp-python is not installed")

DELTA_NET = {"linear_key_head_dim": 32, "linear_value_head_dim": 32}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "qwen3_moe": {},
    "qwen3_5": DELTA_NET,
    "qwen3_5_moe": DELTA_NET,
}
N_CTX = 4096
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Small random models of an architecture, written once."""
    made: dict[str, Path] = {}

    def make(arch: str) -> Path:
        if arch not in made:
            folder = tmp_path_factory.mktemp(arch)
            made[arch] = export_gguf(tiny_model(arch, folder / "model", **SHAPES[arch]), folder / "model.gguf")
        return made[arch]

    return make


@pytest.fixture
def open_llm(gguf: Callable[[str], Path]) -> Iterator[Callable[..., LLM]]:
    """Makes LLMs on llama.cpp and closes them, which gives all memory back."""
    made: list[LLM] = []

    def make(arch: str = "qwen3", **options: Any) -> LLM:
        keywords = {"n_ctx": N_CTX, "n_threads": 1, "kv_growth": "exact", **options}
        made.append(LLM(gguf(arch), runtime="llama.cpp", **keywords))
        return made[-1]

    yield make
    for llm in made:
        llm.close()
        assert llm.budget.committed_bytes == 0


ARCHITECTURES = pytest.mark.parametrize("arch", SHAPES)


@ARCHITECTURES
@pytest.mark.parametrize("cells", ["f16", "q8_0"])
def test_growing_gives_the_bits_of_a_static_context(arch: str, cells: str, open_llm: Callable[..., LLM]) -> None:
    grown, static = open_llm(arch, kv_dtype=cells), open_llm(arch, kv_dtype=cells, kv_dynamic=False)
    sizes = []
    for step, (seq_id, n) in enumerate([(0, 100), (1, 300), (0, 500), *((i, 9) for i in range(2, 8)), (1, 700)]):
        ids = random_ids(n, 300, seed=step)
        assert torch.equal(grown.forward(ids, seq_id), static.forward(ids, seq_id))
        grown.memory.check()
        sizes.append(grown.stats().capacity_cells)
    assert sizes[0] == 256
    assert sorted(set(sizes)) == sorted(set(sizes), key=sizes.index)
    assert len(set(sizes)) >= 4
    assert static.stats().capacity_cells == N_CTX
    assert static.stats().n_resizes <= 3  # for more sequences than the first contexts tell apart


@ARCHITECTURES
def test_text_is_that_of_our_own_kernels(arch: str, gguf: Callable[[str], Path], open_llm: Callable[..., LLM]) -> None:
    prompt = random_ids(60, 300)
    with LLM(gguf(arch), runtime="elastikv", n_ctx=N_CTX, kv_dtype="f32") as own:
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
    assert torch.equal(llm.forward([5, 6, 7]), other.forward([5, 6, 7]))

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


def test_a_refusal_loses_nothing(open_llm: Callable[..., LLM]) -> None:
    llm, twin = open_llm(kv_budget=2 << 20), open_llm()
    ids = random_ids(200, 300)
    assert torch.equal(llm.forward(ids), twin.forward(ids))
    before = llm.stats()
    with pytest.raises(CacheFull) as refusal:
        llm.forward(random_ids(3000, 300))
    assert refusal.value.resource == "kv-budget"
    assert llm.stats().sequences == before.sequences
    assert torch.equal(llm.forward([5, 6]), twin.forward([5, 6]))
    with pytest.raises(CacheFull) as refusal:
        llm.forward([1] * N_CTX)
    assert refusal.value.resource == "n_ctx"


def fail_next(monkeypatch: pytest.MonkeyPatch, failures: list[BaseException]) -> None:
    """The next contexts are not made, one for each failure."""
    left = iter(failures)

    def make(*arguments: Any) -> Context:
        if (failure := next(left, None)) is not None:
            raise failure
        return Context(*arguments)

    monkeypatch.setattr(runtime, "Context", make)


@pytest.mark.parametrize("n_failures", [1, 2, 3])
@pytest.mark.parametrize("error", [MemoryError("none left"), KeyboardInterrupt()])
@pytest.mark.parametrize("arch", ["qwen3", "qwen3_5"])
def test_contexts_that_cannot_be_made_lose_nothing(
    arch: str, error: BaseException, n_failures: int, open_llm: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the larger one fails, then one like the old, then one at the next use."""
    llm, twin = open_llm(arch), open_llm(arch)
    ids = random_ids(200, 300)
    for seq_id in (0, 1):
        assert torch.equal(llm.forward(ids[:100], seq_id), twin.forward(ids[:100], seq_id))
    fail_next(monkeypatch, [error] * n_failures)
    for _ in range(1 + (n_failures == 3)):
        with pytest.raises((CacheFull, KeyboardInterrupt)):
            llm.memory.init_batch(Batch([SeqTokens(0, ids, 1)]), 512)
        assert [llm.memory.n_tokens(seq_id) for seq_id in (0, 1)] == [100, 100]
        assert llm.budget.committed_bytes > 0
    assert llm.memory.seq_rm(1)
    assert twin.memory.seq_rm(1)
    more = random_ids(150, 300, seed=2)
    assert torch.equal(llm.forward(more), twin.forward(more))


def test_many_sessions_generate_together(open_llm: Callable[..., LLM]) -> None:
    llm, alone = open_llm(), open_llm()
    prompts = [random_ids(20 + 7 * i, 300, seed=i) for i in range(9)]
    together = llm.generate(prompts, GREEDY)
    for prompt, output in zip(prompts, together, strict=True):
        alone.clear()
        assert alone.generate([prompt], GREEDY)[0].token_ids == output.token_ids


def test_its_tokenizer(open_llm: Callable[..., LLM], gguf: Callable[[str], Path]) -> None:
    llm = open_llm()
    with LLM(gguf("qwen3"), runtime="elastikv", n_ctx=64) as own:
        for text in ("Hello, world", "naïve façade 12 345", "  two spaces", "日本語"):
            assert llm.tokenizer.decode(llm.tokenizer.encode(text)) == text
            assert llm.tokenizer.encode(text) == own.tokenizer.encode(text)
    output = llm.generate("Hello", GREEDY)[0]
    assert output.text == llm.tokenizer.decode(output.token_ids)


def test_what_it_refuses(gguf: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="quantize"):
        LLM(gguf("qwen3"), runtime="llama.cpp", quantize="q8_0")
    with pytest.raises(UnsupportedModel, match="GGUF"):
        find(tiny_model("llama", tmp_path), "llama.cpp")
