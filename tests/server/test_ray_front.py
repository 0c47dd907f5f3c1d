"""What is asked of the server over HTTP, asked through the front of a cluster, here without the cluster between.

A front must change no route, stream or error. And what only a front does: it asks again where a replica was lost.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import running as running_module
from fake_engine import FakeAsyncLLM
from running import RunningServer, running, wait_for
from starlette.types import Message, Receive, Scope, Send
from test_openai_chat import *  # noqa: F403  their tests run here with the fixture below
from test_openai_completions import *  # noqa: F403
from test_server_errors import *  # noqa: F403

from elastikv.server import ServerSettings, create_app

ray = pytest.importorskip("ray", reason='Ray is not installed: pip install -e ".[ray]"')

ASK = {"messages": [{"role": "user", "content": "hello"}]}


class Replicas:
    """A handle of Ray Serve, as far as a front uses it.

    lost_after: after how many ASGI messages the replica of each of the next requests dies.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.lost_after: list[int] = []
        self.options_given: list[dict[str, Any]] = []

    def options(self, **options: Any) -> Replicas:
        self.options_given.append(options)
        return self

    def remote(self, request: Any) -> Answer:
        return Answer(self, request)


class Answer:
    def __init__(self, replicas: Replicas, request: Any) -> None:
        from elastikv.integrations.ray.replica import answers

        self._batches = answers(replicas.app, request)
        self._n_left = replicas.lost_after.pop(0) if replicas.lost_after else None

    async def __aiter__(self) -> AsyncIterator[list[Message]]:
        try:
            async for batch in self._batches:
                for message in batch:
                    if self._n_left == 0:
                        raise ray.exceptions.RayActorError()
                    if self._n_left is not None:
                        self._n_left -= 1
                    yield [message]
        finally:
            await self._batches.aclose()

    def cancel(self) -> None: ...


class Fronted:
    """The server's app, and a front through which requests come to it."""

    def __init__(self, settings: ServerSettings, *arguments: Any) -> None:
        from elastikv.integrations.ray.front import Front

        self.app = create_app(settings, *arguments)
        self.replicas = Replicas(self.app)
        self.front = Front(settings, self.replicas).__serve_build_asgi_app__()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.app if scope["type"] == "lifespan" else self.front)(scope, receive, send)


@pytest.fixture(autouse=True)
def fronted(monkeypatch: pytest.MonkeyPatch) -> list[Fronted]:
    """The apps that the test's servers serve."""
    made: list[Fronted] = []

    def make(*arguments: Any) -> Fronted:
        made.append(Fronted(*arguments))
        return made[-1]

    monkeypatch.setattr(running_module, "create_app", make)
    return made


def test_what_a_lost_replica_had_not_begun_another_answers(server: RunningServer, fronted: list[Fronted]) -> None:
    fronted[0].replicas.lost_after = [0, 0]
    assert server.post("/v1/chat/completions", **ASK).json()["choices"][0]["message"]["content"] == "<user>hello"


def test_a_request_that_loses_every_replica_gets_503(server: RunningServer, fronted: list[Fronted]) -> None:
    fronted[0].replicas.lost_after = [0, 0, 0, 0]
    for path in ("/v1/chat/completions", "/v1/messages"):
        fronted[0].replicas.lost_after = [0, 0, 0]
        response = server.post(path, **ASK, max_tokens=5)
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert "3 replicas were lost" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "kind"), [("/v1/chat/completions", "unavailable_error"), ("/v1/messages", "overloaded_error")]
)
def test_a_stream_that_is_cut_says_so(server: RunningServer, fronted: list[Fronted], path: str, kind: str) -> None:
    fronted[0].replicas.lost_after = [3]
    with server.http.stream("POST", path, json={**ASK, "max_tokens": 50, "stream": True}) as response:
        events = [line for line in response.iter_lines() if line]
    assert response.status_code == 200
    error = json.loads(events[-1].removeprefix("data: "))["error"]
    assert error["type"] == kind
    assert "lost" in error["message"]


def test_an_answer_that_is_no_stream_is_not_cut_silently(server: RunningServer, fronted: list[Fronted]) -> None:
    fronted[0].replicas.lost_after = [1]
    with pytest.raises(httpx.RemoteProtocolError):
        server.http.get("/v1/models")


def test_the_session_that_a_client_names_reaches_the_router(server: RunningServer, fronted: list[Fronted]) -> None:
    server.http.post("/v1/chat/completions", json=ASK, headers={"X-Session-Id": "mine"})
    assert fronted[0].replicas.options_given[-1] == {"session_id": "mine"}


def test_a_client_that_goes_away_ends_its_generation() -> None:
    engine = FakeAsyncLLM(step=0.02)
    with running(engine) as server:
        with server.http.stream("POST", "/v1/completions", json={"prompt": "x" * 200, "stream": True}) as response:
            next(response.iter_lines())
        wait_for(lambda: engine.aborted == ["x" * 200])
