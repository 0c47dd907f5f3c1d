"""Bytes that no client library would send: half heads, two lengths, pipelines, readers that do not read."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from fake_engine import FakeAsyncLLM
from running import RunningServer, raw_post, running, wait_for

HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
PROMPT = {"prompt": "hello"}


@pytest.fixture
def hasty(engine: FakeAsyncLLM) -> Iterator[RunningServer]:
    with running(engine, timeout=0.3) as server:
        yield server


def sent(server: RunningServer, raw: bytes) -> bytes:
    """All that comes back until the server closes the connection."""
    with server.connect() as connection:
        connection.sendall(raw)
        return rest(connection)


def rest(connection: socket.socket) -> bytes:
    answer = b""
    while piece := connection.recv(65536):
        answer += piece
    return answer


def trickle(connection: socket.socket) -> None:
    """A byte now and then, until the server has closed the connection."""
    with suppress(ConnectionError):
        for _ in range(500):
            connection.sendall(b"X")
            time.sleep(0.02)
        pytest.fail("the server waits on")


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", answer)]


def error_in(answer: bytes) -> dict:
    return json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


@pytest.mark.parametrize("raw", [b"GET", b"GET /health HTTP/1.1\r\nHost: loc", HEAD])
def test_half_a_head_is_a_408(hasty: RunningServer, raw: bytes) -> None:
    answer = sent(hasty, raw)
    assert statuses(answer) == [408]
    assert error_in(answer)["code"] == "timeout"


def test_a_head_byte_by_byte_buys_no_time(hasty: RunningServer) -> None:
    with hasty.connect() as connection:
        trickle(connection)


def test_half_a_head_after_a_whole_request(hasty: RunningServer) -> None:
    with hasty.connect() as connection:
        connection.sendall(HEAD + b"\r\n")
        assert statuses(connection.recv(4096)) == [200]
        connection.sendall(HEAD)
        assert statuses(rest(connection)) == [408]


def test_a_connection_that_says_nothing_is_closed_without_a_word(hasty: RunningServer) -> None:
    assert sent(hasty, b"") == b""


def test_a_body_that_was_answered_before_it_came_is_not_waited_for(engine: FakeAsyncLLM) -> None:
    with running(engine, timeout=0.3, max_body_bytes=10) as server, server.connect() as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
        assert statuses(connection.recv(4096)) == [413]
        trickle(connection)


SMUGGLED = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize("key", [(), ("k",)])
@pytest.mark.parametrize("encoding", ["chunked", "Chunked"])
@pytest.mark.parametrize("length", [0, 5, 200])
def test_two_lengths_close_the_connection(
    engine: FakeAsyncLLM, length: int, encoding: str, key: tuple[str, ...]
) -> None:
    with running(engine, api_keys=key) as server:
        answer = sent(
            server,
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            + f"Content-Length: {length}\r\nTransfer-Encoding: {encoding}\r\n\r\n0\r\n\r\n".encode()
            + SMUGGLED,
        )
        assert statuses(answer) == [400]
        assert error_in(answer)["code"] == "bad_http"
        assert b"connection: close" in answer.lower()
        assert engine.requests == []


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5, 6\r\n",
        b"Content-Length: -5\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 0x5\r\n",
        b"Content-Length : 5\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Host: localhost\r\n",
        b"X: a\0b\r\n",
        b"X: a\rb\r\n",
        b"no colon\r\n",
    ],
)
def test_a_head_that_can_be_read_two_ways_is_refused(server: RunningServer, lines: bytes) -> None:
    answer = sent(server, b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + lines + b"\r\nhello" + SMUGGLED)
    assert statuses(answer) == [400]
    assert error_in(answer)["code"] == "bad_http"


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"G@T / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\nHost: localhost\n\n\n\0\n\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(server: RunningServer, raw: bytes) -> None:
    # What is read as a request with garbage behind it is answered first.
    assert statuses(sent(server, raw))[-1] == 400


@pytest.mark.parametrize("chunks", [b"zz\r\n", b"5\r\nhelloXX", b"-1\r\n", b"5;x=\0\r\nhello\r\n", b"f" * 30 + b"\r\n"])
@pytest.mark.parametrize("key", [(), ("k",)])
def test_broken_chunks_end_the_connection(
    engine: FakeAsyncLLM, chunks: bytes, key: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with running(engine, api_keys=key) as server:
        assert statuses(sent(server, head + chunks + SMUGGLED)) == [400]
        with server.connect() as connection:  # and once an answer has gone out already
            connection.sendall(head)
            time.sleep(0.05)
            connection.sendall(chunks + SMUGGLED)
            assert statuses(rest(connection)) == [401 if key else 400]
    assert "Traceback" not in capsys.readouterr().err
    assert engine.requests == []


def test_a_pipeline_is_answered_in_order(server: RunningServer) -> None:
    texts = ["one", "two", "three"]
    requests = [raw_post("/v1/completions", {"prompt": text}) for text in texts]
    answer = sent(server, b"".join(requests) + HEAD + b"Connection: close\r\n\r\n")
    assert statuses(answer) == [200] * 4
    assert [text.decode() for text in re.findall(rb'"text":"(\w+)"', answer)] == texts


def test_a_pipeline_behind_a_stream_waits_for_its_end(server: RunningServer) -> None:
    stream = raw_post("/v1/completions", {**PROMPT, "stream": True})
    answer = sent(server, stream + HEAD + b"Connection: close\r\n\r\n")
    assert statuses(answer) == [200, 200]
    assert answer.index(b"[DONE]") < answer.index(b'{"status"')


def test_a_pipeline_ends_where_the_connection_was_to_close(server: RunningServer, engine: FakeAsyncLLM) -> None:
    closing = raw_post("/v1/completions", PROMPT, "Connection: close")
    assert statuses(sent(server, closing + raw_post("/v1/completions", PROMPT))) == [200]
    assert len(engine.requests) == 1


@pytest.mark.parametrize("head", [b"HEAD / HTTP/1.0", b"GET / HTTP/1.0", b"HEAD / HTTP/1.1\r\nConnection: close"])
def test_what_follows_the_last_request_does_not_spoil_it(
    server: RunningServer, head: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with server.connect() as connection:
        connection.sendall(head + b"\r\nHost: localhost\r\n\r")
        connection.sendall(b"\n")
        connection.sendall(b"\r\n\0\0")
        assert statuses(rest(connection)) == [200]
    assert "Traceback" not in capsys.readouterr().err


def test_a_head_request_is_refused_without_a_body(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    answer = sent(server, b"HEAD / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
    assert statuses(answer) == [400]
    assert answer.endswith(b"\r\n\r\n")
    answer = sent(server, b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n\0\0\r\n\r\n")
    assert statuses(answer) == [200, 400]
    assert answer.endswith(b"}}")
    assert "Traceback" not in capsys.readouterr().err


def test_garbage_behind_a_request_spoils_only_what_follows(server: RunningServer) -> None:
    assert statuses(sent(server, raw_post("/v1/completions", PROMPT) + b"\0\0\0\0\r\n\r\n")) == [200, 400]


def test_100_continue(server: RunningServer) -> None:
    head, _, body = raw_post("/v1/completions", PROMPT, "Expect: 100-continue", "Connection: close").partition(
        b"\r\n\r\n"
    )
    with server.connect() as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert statuses(connection.recv(4096)) == [100]
        connection.sendall(body)
        assert statuses(rest(connection)) == [200]


def slow_reader(server: RunningServer, request: bytes) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((server.http.base_url.host, server.http.base_url.port))
    connection.sendall(request)
    return connection


def test_a_whole_answer_that_nobody_reads_is_given_up() -> None:
    engine = FakeAsyncLLM(n_ctx=1 << 21)
    body = {"prompt": "x" * 30_000, "logprobs": 20}
    with running(engine, timeout=0.5) as server, slow_reader(server, raw_post("/v1/completions", body)):
        wait_for(lambda: owes_bytes(server), seconds=60)
        wait_for(lambda: not owes_bytes(server), seconds=20)


def owes_bytes(server: RunningServer) -> bool:
    return any(connection.transport.get_write_buffer_size() for connection in server.server.server_state.connections)


def test_a_reader_that_is_only_slow_gets_everything() -> None:
    engine = FakeAsyncLLM(n_ctx=1 << 20)
    request = raw_post("/v1/completions", {"prompt": "x" * 20_000, "stream": True}, "Connection: close")
    with running(engine, timeout=5) as server, slow_reader(server, request) as connection:
        time.sleep(0.2)
        answer = rest(connection)
    assert answer.count(b'"text":"x"') == 20_000
    assert b"data: [DONE]" in answer


@pytest.mark.parametrize("path", ["/", "/health", ""])
def test_head_is_get_without_a_body(server: RunningServer, path: str) -> None:
    got, head = server.http.get(path), server.http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(got.content))


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("/health/", "/health"),
        ("/slots/?a=%2F", "/slots?a=%2F"),
        ("//health//", "/health"),
        ("//evil.example/", None),
        ("/v1/models/x%20y/", None),
    ],
)
def test_redirects_stay_here(engine: FakeAsyncLLM, path: str, location: str | None) -> None:
    with running(engine, allowed_hosts=("*",)) as server:
        answer = sent(server, f"GET {path} HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n".encode())
    head = answer.partition(b"\r\n\r\n")[0].decode()
    assert re.findall("(?m)^location: (.*)\r$", head) == ([location] if location else [])
    assert statuses(answer) == [307 if location else 404]
    assert "evil" not in head


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", "/memory", "GET, POST"),
        ("POST", "/slots", "GET"),
        ("GET", "/v1/completions", "POST"),
        ("PUT", "/health", "GET, HEAD"),
        ("POST", "/", "GET, HEAD"),
        ("POST", "", "GET, HEAD"),
    ],
)
def test_405_tells_what_is_allowed(server: RunningServer, method: str, path: str, allow: str) -> None:
    response = server.http.request(method, path)
    assert response.status_code == 405
    assert response.headers["allow"] == allow
