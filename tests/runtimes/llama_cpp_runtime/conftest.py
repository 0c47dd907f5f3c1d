"""Small random GGUFs, and models that llama.cpp runs from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.llama_cpp_shapes import write_gguf

from elastikv import LLM


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file of an architecture, written once."""
    made: dict[str, Path] = {}

    def make(arch: str) -> Path:
        if arch not in made:
            made[arch] = write_gguf(arch, tmp_path_factory.mktemp(arch))
        return made[arch]

    return make


@pytest.fixture
def open_llm(gguf: Callable[[str], Path]) -> Iterator[Callable[..., LLM]]:
    """Makes LLMs on llama.cpp and closes them, which gives all memory back."""
    made: list[LLM] = []

    def make(arch: str = "qwen3", **options: object) -> LLM:
        keywords = {"runtime": "llama.cpp", "n_ctx": 4096, "n_threads": 1, "kv_growth": "exact", **options}
        made.append(LLM(gguf(arch), **keywords))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for llm in made:
        llm.close()
        assert llm.budget.committed_bytes == 0
