"""``elastikv serve --runtime llama.cpp``: the same server over the other runtime."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from serve_process import serving
from support.llama_cpp_shapes import write_gguf

pytest.importorskip("llama_cpp.llama_cpp", reason="llama-cpp-python is not installed", exc_type=ImportError)


def test_it_serves_parks_and_comes_back(tmp_path: Path) -> None:
    model = write_gguf("qwen3", tmp_path)
    flags = ("-c", "4096", "--parallel", "4", "--kv-park", str(tmp_path / "parked"), "--runtime", "llama.cpp")
    body = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}

    def complete(url: str, prompt: str) -> dict:
        return httpx.post(f"{url}/v1/completions", json={"prompt": prompt, **body}, timeout=60).json()

    prompts = [f"{word} " * 50 for word in ("one", "two", "three", "four")]
    with serving(model, *flags) as server:
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda prompt: complete(server.url, prompt), prompts))
        metrics = httpx.get(f"{server.url}/metrics", timeout=10).text
        assert len(server.get("/slots")) == 4
        assert server.end() == 0
    assert "elastikv_kv_committed_bytes" in metrics
    with serving(model, *flags) as server:
        for prompt, before in zip(prompts, together, strict=True):
            again = complete(server.url, prompt)
            assert again["choices"][0]["text"] == before["choices"][0]["text"]
            assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
        assert server.end(signal.SIGTERM) == 0
