"""schemathesis over the OpenAPI description of a real server: whatever comes, no 500. Skipped without schemathesis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import FakeAsyncLLM
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from serve_process import ServeProcess, serving
from support.tiny_models import tiny_model

from elastikv.server import ServerSettings, create_app

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

pytestmark = pytest.mark.slow
N_EXAMPLES = 40
DESCRIPTION = schemathesis.openapi.from_dict(create_app(ServerSettings(), FakeAsyncLLM).openapi())
OPERATIONS = {operation.label: operation for found in DESCRIPTION.get_all_operations() if (operation := found.ok())}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    folder: Path = tmp_path_factory.mktemp("fuzz")
    model = tiny_model("qwen3_5", folder / "model")
    with serving(model, "-c", "128", "--slot-save-path", str(folder / "slots"), "--kv-budget", "64MiB") as process:
        yield process


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("label", OPERATIONS)
def test_whatever_comes_is_answered_without_a_500(server: ServeProcess, label: str, mode: Any) -> None:
    @settings(max_examples=N_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=OPERATIONS[label].as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        response = case.call(base_url=server.url, timeout=30)
        assert response.status_code != 500, case.as_curl_command()
        if response.status_code >= 400:
            assert set(response.json()["error"]) >= {"message", "type", "param", "code"}

    # Operations without parameters have nothing to be wrong in: then there is no negative case.
    with suppress(Unsatisfiable):
        check()


def test_the_server_is_well_afterwards(server: ServeProcess) -> None:
    assert httpx.post(f"{server.url}/memory", json={"budget": "64MiB"}).status_code == 200
    reply = httpx.post(f"{server.url}/v1/completions", json={"prompt": "hello", "max_tokens": 4}, timeout=30)
    assert reply.status_code == 200
    assert not any("Traceback" in line for line in server.lines), server.lines
