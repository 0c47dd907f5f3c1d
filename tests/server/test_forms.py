"""The form of a text, in the words of three servers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from fake_engine import FakeAsyncLLM
from real_engine import serving
from running import RunningServer

from elastikv.engine.params import SamplingParams

COLOUR = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}
STRICT = {"type": "json_schema", "json_schema": {"name": "c", "schema": COLOUR, "strict": True}}
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def demo() -> Iterator[RunningServer]:
    with serving() as handle:
        yield handle


@pytest.mark.parametrize(
    ("wish", "field", "value"),
    [
        ({"response_format": STRICT}, "json_schema", COLOUR),
        ({"response_format": {"type": "json_schema", "schema": COLOUR}}, "json_schema", COLOUR),
        ({"response_format": {"type": "json_object", "schema": COLOUR}}, "json_schema", COLOUR),
        ({"response_format": {"type": "json_object"}}, "json_schema", {"type": "object"}),
        ({"response_format": {"type": "text"}}, "json_schema", None),
        ({"json_schema": COLOUR}, "json_schema", COLOUR),
        ({"json_schema": {}}, "json_schema", {}),
        ({"grammar": 'root ::= "a"'}, "grammar", 'root ::= "a"'),
        ({"grammar": ""}, "grammar", None),
        ({"guided_json": json.dumps(COLOUR)}, "json_schema", COLOUR),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"guided_choice": ["a", "b"]}, "choice", ("a", "b")),
        ({"guided_grammar": 'root ::= "a"'}, "grammar", 'root ::= "a"'),
        ({"structured_outputs": {"json": COLOUR}}, "json_schema", COLOUR),
        ({"structured_outputs": {"json_object": True}}, "json_schema", {"type": "object"}),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "choice", ("a", "b")),
    ],
)
def test_each_servers_words_ask_for_the_same(
    server: RunningServer, engine: FakeAsyncLLM, wish: dict, field: str, value: object
) -> None:
    for path, body in (("/v1/chat/completions", {"messages": MESSAGES}), ("/v1/completions", {"prompt": "x"})):
        assert server.post(path, **body, **wish).status_code == 200
        params: SamplingParams = engine.requests.pop()
        asked = getattr(params, field)
        if isinstance(asked, dict):
            asked = {key: member for key, member in asked.items() if key != "x-guidance"}
        assert asked == value
        assert sum(getattr(params, name) is not None for name in ("json_schema", "grammar", "regex", "choice")) <= 1


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_choice": [""]}, "guided_choice"),
        ({"grammar": 'root ::= "a"', "guided_regex": "a"}, "guided_regex"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice"),
    ],
)
def test_what_is_no_form_is_refused_by_its_name(server: RunningServer, wish: dict, param: str) -> None:
    response = server.post("/v1/chat/completions", messages=MESSAGES, **wish)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_an_invalid_schema_is_a_400_that_names_the_place(demo: RunningServer) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "strin"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    for stream in (False, True):
        response = demo.post("/v1/chat/completions", messages=MESSAGES, response_format=wanted, stream=stream)
        assert response.status_code == 400
        assert response.json()["error"]["message"] == "json_schema.properties.a: Invalid type: strin"


def test_only_a_strict_schema_has_to_be_enforced_to_the_letter(demo: RunningServer) -> None:
    schema = {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "maxItems": 2}
    for strict, status in ((True, 400), (False, 200), (None, 200)):
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": strict}}
        response = demo.post("/v1/chat/completions", messages=MESSAGES, response_format=wanted)
        assert response.status_code == status, response.text


def test_n_choices_and_streams_follow_the_form(demo: RunningServer) -> None:
    body = {"messages": MESSAGES, "response_format": STRICT, "n": 3, "seed": 5}
    choices = demo.post("/v1/chat/completions", **body).json()["choices"]
    texts = [choice["message"]["content"] for choice in choices]
    assert all(re.fullmatch('{"colour": "(red|blue)"}', text) for text in texts), texts
    streamed = ["", "", ""]
    for line in demo.post("/v1/chat/completions", **body, stream=True).text.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                streamed[choice["index"]] += choice["delta"].get("content") or ""
    assert streamed == texts
