"""The demo model behind the server, for what only a model can answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from running import RunningServer, running

from elastikv import LLM
from elastikv.engine.async_llm import AsyncLLM


@contextmanager
def serving(model: Path | None = None, **settings: Any) -> Iterator[RunningServer]:
    """``model`` (the demo model, if none is given) on a free port, with nothing to compile."""
    with LLM(model, n_ctx=4096, n_threads=1, kernels="reference") as llm, running(AsyncLLM(llm), **settings) as handle:
        handle.http.timeout = 60
        yield handle
