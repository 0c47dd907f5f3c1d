"""What a browser may ask for on behalf of a page."""

from __future__ import annotations

import pytest
from fake_engine import FakeAsyncLLM
from running import RunningServer, running

from elastikv.server.origins import host_name, is_origin


def status_of(server: RunningServer, host: str | None, path: str = "/slots") -> int:
    """With exactly this ``Host``, or none, which only HTTP/1.0 knows."""
    head = f"GET {path} HTTP/1.0\r\n" + ("" if host is None else f"Host: {host}\r\n")
    with server.connect() as connection:
        connection.sendall(head.encode("latin-1") + b"\r\n")
        return int(connection.recv(1000).split()[1])


OWN_NAMES = ["localhost", "localhost:8080", "LocalHost:1", "localhost.", "a.localhost", "127.0.0.1:80", "127.8.9.1"]
OWN_NAMES += ["[::1]", "[::1]:8080", "[0:0:0:0:0:0:0:1]"]
FOREIGN = ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "notlocalhost"]
FOREIGN += [
    "192.168.1.5",
    "[fe80::1]",
    "[::1",
    "[::1].evil.example",
    "localhost:80:80",
    "user@localhost",
    "",
    "é",
    None,
]


@pytest.mark.parametrize(("host", "status"), [(name, 200) for name in OWN_NAMES] + [(name, 403) for name in FOREIGN])
def test_only_names_of_this_machine_are_answered(server: RunningServer, host: str | None, status: int) -> None:
    assert status_of(server, host) == status


@pytest.mark.parametrize("path", ["/", "/health", "/page/app.js", "/slots", "/memory", "/nothing", "/openapi.json"])
def test_a_rebound_page_reads_nothing(server: RunningServer, path: str) -> None:
    response = server.http.get(path, headers={"Host": "evil.example"})
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "host_not_allowed"
    assert "--allowed-hosts" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("settings", "host", "status"),
    [
        ({"allowed_hosts": ("llm.example",)}, "LLM.example:443", 200),
        ({"allowed_hosts": ("LLM.example",)}, "llm.example", 200),
        ({"allowed_hosts": ("llm.example",)}, "x.llm.example", 403),
        ({"allowed_hosts": ("*.llm.example",)}, "x.llm.example", 200),
        ({"allowed_hosts": ("*.llm.example",)}, "llm.example", 403),
        ({"allowed_hosts": ("*.llm.example",)}, "xllm.example", 403),
        ({"allowed_hosts": ("fd00:0::5",)}, "[FD00::5]:80", 200),
        ({"allowed_hosts": ("*",)}, "evil.example", 200),
        ({"host": "myhost"}, "myhost:8080", 200),
        ({"host": "192.168.1.5"}, "192.168.1.5:8080", 200),
        ({"host": "192.168.1.5"}, "192.168.1.6", 403),
        ({"host": "0.0.0.0"}, "192.168.1.5:8080", 200),
        ({"host": "::"}, "[fe80::1]", 200),
        ({"host": "0.0.0.0"}, "evil.example", 403),
        ({"api_keys": ("k",)}, "evil.example", 401),
    ],
)
def test_names_that_were_given(engine: FakeAsyncLLM, settings: dict, host: str, status: int) -> None:
    with running(engine, **settings) as server:
        assert status_of(server, host) == status


CROSS_SITE = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://["},
    {"Origin": "http://localhost:3000"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"},
]


@pytest.mark.parametrize("headers", CROSS_SITE)
@pytest.mark.parametrize("key", [(), ("k",)])
def test_another_sites_page_changes_nothing(engine: FakeAsyncLLM, headers: dict, key: tuple[str, ...]) -> None:
    with running(engine, api_keys=key) as server:
        server.post("/v1/completions", prompt="x")
        form = {"Content-Type": "application/x-www-form-urlencoded", **headers}
        for path in ("/slots/0?action=erase", "/memory", "/v1/completions"):
            response = server.http.post(path, headers=form, content="shrink=true" if path == "/memory" else b"")
            assert response.status_code == 403
            assert response.json()["error"]["code"] == "cross_site"
        assert len(server.http.get("/slots", headers=headers).json()) == 1
        assert engine.calls == []


@pytest.mark.parametrize(
    "headers",
    [{}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}, {"Origin": "{own}"}],
)
def test_our_own_page_and_other_programs_may(server: RunningServer, headers: dict) -> None:
    headers = {name: value.format(own=server.url) for name, value in headers.items()}
    assert server.http.post("/memory", json={"shrink": True}, headers=headers).status_code == 200


def preflight(server: RunningServer, origin: str) -> object:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    return server.http.options("/v1/completions", headers={"Origin": origin, **asked})


def test_nobody_is_told_that_they_may_ask(server: RunningServer) -> None:
    response = preflight(server, "http://evil.example")
    assert response.status_code == 405
    assert not any(name.startswith("access-control") for name in response.headers)


def test_a_page_that_was_named_may(engine: FakeAsyncLLM) -> None:
    friend = "https://friend.example"
    with running(engine, cors_origins=(friend,), api_keys=("k",)) as server:
        del server.http.headers["Authorization"]
        answer = preflight(server, friend)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == friend
        assert "authorization" in answer.headers["access-control-allow-headers"].lower()
        asked = {"Origin": friend, "Sec-Fetch-Site": "cross-site"}
        refused = server.http.post("/v1/completions", json={"prompt": "hi"}, headers=asked)
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == friend
        reply = server.http.post(
            "/v1/completions", json={"prompt": "hi"}, headers={**asked, "Authorization": "Bearer k"}
        )
        assert reply.status_code == 200
        assert reply.headers["access-control-allow-origin"] == friend
        other = preflight(server, "https://evil.example")
        assert "access-control-allow-origin" not in other.headers


def test_a_star_lets_every_page_in(engine: FakeAsyncLLM) -> None:
    with running(engine, cors_origins=("*",)) as server:
        assert preflight(server, "http://evil.example").headers["access-control-allow-origin"] == "*"
        headers = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
        assert server.http.post("/v1/completions", json={"prompt": "x"}, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("authority", "name"),
    [("A.b:1", "a.b"), ("::1", "::1"), ("[::1]:1", "::1"), ("0:0::1", "::1"), ("a.", "a"), (".", None), ("a/b", None)],
)
def test_host_names(authority: str, name: str | None) -> None:
    assert host_name(authority) == name


@pytest.mark.parametrize(
    ("text", "good"),
    [("https://x.org", True), ("http://[::1]:3000", True), ("null", True), ("*", True)]
    + [(bad, False) for bad in ("x.org", "https://x.org/", "https://x.org/page", "https://", "")],
)
def test_origins(text: str, good: bool) -> None:
    assert is_origin(text) is good
