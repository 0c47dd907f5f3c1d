from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_engine import FakeAsyncLLM
from running import RunningServer, running

from elastikv.server import ServerSettings, create_app

# What must work before anybody can have typed a key.
OPEN = {"/health", "/"}


@pytest.fixture
def guarded(engine: FakeAsyncLLM) -> Iterator[RunningServer]:
    with running(engine, api_keys=("secret", "second")) as server:
        yield server


def all_routes() -> list[tuple[str, str]]:
    schema = create_app(ServerSettings(), FakeAsyncLLM).openapi()
    described = [(method.upper(), path) for path, methods in schema["paths"].items() for method in methods]
    return [*described, ("GET", "/openapi.json"), ("GET", "/nothing"), ("POST", "/")]


def test_every_route_but_health_asks_for_the_key(guarded: RunningServer) -> None:
    del guarded.http.headers["Authorization"]
    asked = {(method, path): guarded.http.request(method, path) for method, path in all_routes()}
    assert len(asked) > 10
    for (_, path), response in asked.items():
        if path in OPEN:
            assert response.status_code in (200, 405)
            continue
        assert response.status_code == 401, path
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer secret"}, 200),
        ({"Authorization": "bearer second"}, 200),
        ({"X-Api-Key": "secret"}, 200),
        ({"Authorization": "Bearer secre"}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": "Basic secret"}, 401),
        ({"Authorization": "Bearer sécret".encode("latin-1")}, 401),
    ],
)
def test_keys(guarded: RunningServer, headers: dict, status: int) -> None:
    del guarded.http.headers["Authorization"]
    assert guarded.http.get("/v1/models", headers=headers).status_code == status


def test_the_page_can_ask_for_the_key(guarded: RunningServer) -> None:
    del guarded.http.headers["Authorization"]
    assert guarded.http.get("/").status_code == 200
    assert guarded.http.get("").status_code == 200
    assert guarded.http.get("/page/../slots").status_code == 401
    assert guarded.http.get("/page/%2e%2e/%2e%2e/__init__.py").status_code == 404


@pytest.mark.parametrize(
    ("host", "is_open"),
    [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("::", True), ("myhost", True)],
)
def test_which_hosts_let_the_network_in(host: str, is_open: bool) -> None:
    assert ServerSettings(host=host).is_open_to_the_network is is_open
