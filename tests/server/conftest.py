from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fake_engine import FakeAsyncLLM
from openai import OpenAI
from running import RunningServer, running


@pytest.fixture
def engine() -> FakeAsyncLLM:
    return FakeAsyncLLM()


@pytest.fixture
def server(engine: FakeAsyncLLM) -> Iterator[RunningServer]:
    with running(engine) as handle:
        yield handle


@pytest.fixture
def client(server: RunningServer) -> Iterator[OpenAI]:
    http = httpx.Client(verify=False)  # no TLS: certificates take longer to read than most tests
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, http_client=http) as openai_client:
        yield openai_client


@pytest.fixture(scope="module")
def echo() -> Iterator[RunningServer]:
    """A server whose replies are what was said last: what a test says is what the model says."""
    from test_chat_messages import Templated

    engine = FakeAsyncLLM(n_ctx=4096)
    engine.llm.tokenizer = Templated("{# <think> </think> <tool_call> #}{{ messages[-1].content }}")
    with running(engine) as handle:
        yield handle


BROWSER_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; of the module, since its driver's event loop would be in the way of those of other tests."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("Chromium is not installed")
    playwright.expect.set_options(timeout=60_000)  # a machine may have more to do than this
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, headless=True, args=BROWSER_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that tolerates no error in its scripts and asks nobody but this machine."""
    context = browser.new_context()
    context.set_default_timeout(60_000)
    problems: list[str] = []
    context.on("weberror", lambda error: problems.append(str(error.error)))
    context.on("request", lambda request: "//127.0.0.1:" in request.url or problems.append(request.url))
    yield context.new_page()
    context.close()
    assert [problem for problem in problems if not problem.startswith("blob:")] == []
