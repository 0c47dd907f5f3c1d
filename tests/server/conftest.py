from __future__ import annotations

from collections.abc import Iterator

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
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as openai_client:
        yield openai_client
