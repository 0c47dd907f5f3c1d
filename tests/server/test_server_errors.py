from __future__ import annotations

import json
import socket

import openai
import pytest
from fake_engine import FakeAsyncLLM
from openai import OpenAI
from running import RunningServer, raw_post, running, wait_for

HELLO = [{"role": "user", "content": "hi"}]


def error_of(response) -> dict:
    """Every error has the same form."""
    error = response.json()["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    return error


def test_a_prompt_longer_than_n_ctx_gives_both_numbers(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="any", messages=[{"role": "user", "content": "x" * 600}])
    assert caught.value.type == "exceed_context_size_error"
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.body["n_prompt_tokens"] == 606
    assert caught.value.body["n_ctx"] == 512


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_is_429_with_retry_after(stream: bool) -> None:
    engine = FakeAsyncLLM(n_parallel=1, max_queue=0, step=0.05)
    with running(engine) as server:
        body = {"prompt": "x" * 100, "stream": True}
        with server.http.stream("POST", "/v1/completions", json=body):
            response = server.post("/v1/completions", prompt="y", stream=stream)
            assert response.status_code == 429
            assert response.headers["retry-after"] == "2"
            assert error_of(response)["code"] == "queue_full"


def test_a_request_that_never_fits_tells_the_numbers(server: RunningServer) -> None:
    response = server.post("/v1/completions", prompt="full!", stream=True)
    assert response.status_code == 400
    error = error_of(response)
    assert (error["code"], error["resource"], error["asked"], error["left"]) == ("cache_full", "kv-budget", 4096, 1024)


def test_a_cut_generation_keeps_its_text(server: RunningServer) -> None:
    reply = server.post("/v1/completions", prompt="cut! here").json()
    assert reply["choices"][0]["text"] == "cut"
    assert reply["choices"][0]["finish_reason"] == "length"
    assert "--kv-budget" in reply["warning"]


def test_a_cut_stream_ends_with_the_warning(server: RunningServer) -> None:
    response = server.post("/v1/completions", prompt="cut! here", stream=True)
    events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    last = json.loads(events[-2])
    assert last["choices"][0]["finish_reason"] == "length"
    assert "--kv-budget" in last["warning"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_bug_is_a_500_that_tells_nothing(server: RunningServer, stream: bool) -> None:
    response = server.post("/v1/completions", prompt="bug!", stream=stream)
    assert response.status_code == 500
    assert error_of(response)["type"] == "server_error"
    assert "ZeroDivision" not in response.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/v1/chat/completions", 405), ("GET", "/v1/models/other", 404)],
)
def test_no_such_route(server: RunningServer, method: str, path: str, status: int) -> None:
    response = server.http.request(method, path)
    assert response.status_code == status
    assert error_of(response)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": HELLO, "n": 0}, "n"),
        ({"messages": HELLO, "n": 1000}, "n"),
        ({"messages": HELLO, "seed": 2**64}, "seed"),
        ({"messages": HELLO, "logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"messages": HELLO, "logit_bias": {"300": 1}}, "logit_bias"),
        ({"messages": HELLO, "top_logprobs": 1}, None),
        ({"messages": HELLO, "temperature": -1}, "temperature"),
        ({"messages": HELLO, "max_tokens": -2}, "max_tokens"),
        ({"messages": HELLO, "stop": [""]}, "stop"),
        ({"messages": HELLO, "chat_template_kwargs": {"colour": "red"}}, None),
    ],
)
def test_a_wrong_value_is_named(server: RunningServer, body: dict, param: str | None) -> None:
    response = server.post("/v1/chat/completions", **body)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "top_k": 1' + b"0" * 5000 + b"}",
        b'{"prompt": "x", "max_tokens": 1e400}',
    ],
)
def test_garbage_is_a_400(server: RunningServer, raw: bytes) -> None:
    response = server.http.post("/v1/completions", content=raw, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    error_of(response)


@pytest.mark.parametrize(
    ("raw", "param", "message"),
    [
        ('{"prompt": x}', None, "the body is not JSON: Expecting value at character 11"),
        ("\udcff", None, "the body cannot be read as JSON in UTF-8"),
        ("[]", None, "the body must be a JSON object"),
        ("", None, "the body must be a JSON object"),
        ("{}", "prompt", "prompt: Field required"),
        ('{"prompt": {"a": 1}}', "prompt", "prompt: Input should be a valid string"),
        ('{"prompt": "\\ud800"}', "prompt", "prompt: character 0 is half of a surrogate pair"),
        ('{"prompt": ["a", "\\ud800"]}', "prompt.1", "prompt.1: character 0 is half of a surrogate pair"),
        ('{"prompt": [[1], [2, -1]]}', "prompt.1.1", "prompt.1.1: Input should be greater than or equal to 0"),
        ('{"prompt": "x", "stop": ["a", 3]}', "stop.1", "stop.1: Input should be a valid string"),
        ('{"prompt": "x", "stream_options": 3}', "stream_options", "stream_options: "),
        ('{"prompt": "x", "logit_bias": {"\\ud800": 1}}', "logit_bias", "logit_bias: "),
    ],
)
def test_a_field_is_named_as_the_client_wrote_it(
    server: RunningServer, raw: str, param: str | None, message: str
) -> None:
    content = raw.encode(errors="surrogateescape")
    response = server.http.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert error_of(response)["param"] == param
    assert error_of(response)["message"].startswith(message)


@pytest.mark.parametrize(
    ("path", "param"),
    [("/memory?since=x", "since"), ("/slots/x?action=save", "slot_id"), ("/slots/1?action=eat", "action")],
)
def test_a_wrong_part_of_the_address_is_named(server: RunningServer, path: str, param: str) -> None:
    response = server.http.request("GET" if "memory" in path else "POST", path)
    assert response.status_code == 400
    assert error_of(response)["param"] == param


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        (None, 415),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("application/jsonx", 415),
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("application/vnd.api+json", 200),
    ],
)
def test_a_body_has_to_say_that_it_is_json(server: RunningServer, content_type: str | None, status: int) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    response = server.http.post("/v1/completions", content=b'{"prompt": "x"}', headers=headers)
    assert response.status_code == status
    if status == 415:
        assert "'Content-Type: application/json'" in error_of(response)["message"]


def test_a_form_is_not_json(server: RunningServer) -> None:
    """A page of another site can make a browser send this without asking; nothing may come of it."""
    response = server.http.post("/memory", content=b'{"shrink": true}', headers={"Content-Type": "text/plain"})
    assert response.status_code == 415
    assert server.engine.calls == []


def test_a_body_that_is_too_large_is_not_read(engine: FakeAsyncLLM) -> None:
    with running(engine, max_body_bytes=1000) as server:
        declared = server.post("/v1/completions", prompt="x" * 2000)
        chunked = server.http.post("/v1/completions", content=(b"x" * 100 for _ in range(50)))
        for response in (declared, chunked):
            assert response.status_code == 413
            assert error_of(response)["code"] == "body_too_large"
        assert server.post("/v1/completions", prompt="x").status_code == 200


def test_a_body_that_does_not_come_is_a_408(engine: FakeAsyncLLM) -> None:
    with running(engine, timeout=0.2) as server, server.connect() as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert connection.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_client_that_reads_nothing_is_dropped() -> None:
    engine = FakeAsyncLLM(n_ctx=1 << 20, step=0.0001)
    with running(engine, timeout=0.3) as server:
        address = server.http.base_url
        request = raw_post("/v1/completions", {"prompt": "x" * 100_000, "stream": True, "logprobs": 20})
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((address.host, address.port))
            connection.sendall(request)
            wait_for(lambda: bool(engine.aborted), seconds=20)
        assert engine.n_generated < 100_000
        assert server.http.get("/health").status_code == 200
