"""Functions that a model calls: asked for with OpenAI's client, forced with the demo model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Literal

import jsonschema_rs
import pytest
from openai import BadRequestError, OpenAI
from pydantic import BaseModel
from real_engine import serving
from running import RunningServer
from support.random_schemas import random_schema
from test_chat_messages import Templated
from test_chat_parser import CALLS, TEMPLATES

from elastikv.engine.constraint import ConstraintCompiler
from elastikv.engine.params import SamplingParams
from elastikv.server.chat_formats import call_format, calls_grammar
from elastikv.weights.hf.tokenizer import read_hf_tokenizer

WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["Bonn", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "It rains?", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
]
ASK = [{"role": "user", "content": "is it raining?"}]


@pytest.fixture(scope="module")
def demo() -> Iterator[OpenAI]:
    with serving() as handle, OpenAI(base_url=f"{handle.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def says(server: RunningServer, text: str) -> dict:
    """The fake engine says its prompt again: here what the conversation ends with."""
    mark = '{# tools <tool_call> "arguments" </think> #}'
    server.engine.llm.tokenizer = Templated(mark + "{{ messages[-1].content }}")
    return {"model": "any", "messages": [{"role": "user", "content": text}]}


def test_calls_of_a_whole_reply(server: RunningServer, client: OpenAI) -> None:
    choice = client.chat.completions.create(**says(server, CALLS["hermes"]), tools=TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert [call.function.name for call in choice.message.tool_calls] == ["a", "b"]
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"x": '}"{', "y": [1, {}]}


def test_calls_of_a_stream_are_the_same(server: RunningServer, client: OpenAI) -> None:
    with client.chat.completions.stream(**says(server, "So: " + CALLS["hermes"]), tools=TOOLS) as events:
        deltas = [event.arguments_delta for event in events if event.type == "tool_calls.function.arguments.delta"]
        choice = events.get_final_completion().choices[0]
    assert len(deltas) > 5
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "So:")
    names = [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls]
    assert names == [("a", {"x": '}"{', "y": [1, {}]}), ("b", {})]


@pytest.mark.parametrize("wish", [{}, {"tools": TOOLS, "tool_choice": "none"}, {"tools": []}])
def test_without_tools_calls_are_text(server: RunningServer, wish: dict) -> None:
    reply = server.post("/v1/chat/completions", **says(server, CALLS["hermes"]), **wish).json()["choices"][0]
    assert reply["message"]["content"] == CALLS["hermes"]
    assert reply["finish_reason"] == "stop"


def test_a_begun_reply_alone_may_have_tools(demo: OpenAI) -> None:
    begun = [{"role": "assistant", "content": "So"}]
    reply = demo.chat.completions.create(model="demo", messages=begun, tools=TOOLS, max_tokens=2)
    assert reply.usage.completion_tokens <= 2


def test_one_call_at_most(server: RunningServer) -> None:
    body = says(server, CALLS["hermes"])
    server.post("/v1/chat/completions", **body, tools=TOOLS, parallel_tool_calls=False)
    assert server.engine.requests[-1].stop == ("</tool_call>",)


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "then"}}}, "tool_choice"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools.0.function.name"),
        ({"tools": TOOLS, "guided_regex": "a"}, "tools"),
    ],
)
def test_what_cannot_be_called_is_refused_by_name(server: RunningServer, wish: dict, param: str) -> None:
    response = server.post("/v1/chat/completions", messages=ASK, **wish)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_a_model_whose_calls_nobody_knows_cannot_be_made_to_call(server: RunningServer) -> None:
    server.engine.llm.tokenizer = Templated("{# tools #}{{ messages[-1].content }}")
    assert server.post("/v1/chat/completions", messages=ASK, tools=TOOLS).status_code == 200
    response = server.post("/v1/chat/completions", messages=ASK, tools=TOOLS, tool_choice="required")
    assert response.json()["error"]["param"] == "tool_choice"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_can_be_demanded(demo: OpenAI, choice: object) -> None:
    for seed in range(3):
        request = {"model": "any", "messages": ASK, "tools": TOOLS, "tool_choice": choice, "seed": seed}
        choices = demo.chat.completions.create(**request, max_tokens=400, parallel_tool_calls=False).choices
        assert choices[0].finish_reason == "tool_calls"
        (call,) = choices[0].message.tool_calls
        if choice != "required":
            assert call.function.name == "weather"
        if call.function.name == "weather":
            jsonschema_rs.validate(WEATHER, json.loads(call.function.arguments))


def test_an_answer_in_a_form_may_stand_for_a_call(demo: OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "w", "schema": WEATHER, "strict": True}}
    for seed in range(3):
        request = {"model": "any", "messages": ASK, "tools": TOOLS[:1], "response_format": form, "seed": seed}
        message = demo.chat.completions.create(**request, max_tokens=400).choices[0].message
        texts = [call.function.arguments for call in message.tool_calls or ()] or [message.content]
        for text in texts:
            jsonschema_rs.validate(WEATHER, json.loads(text))


def test_parse_gives_an_object_of_the_class(demo: OpenAI) -> None:
    class Answer(BaseModel):
        is_raining: bool
        city: Literal["Bonn", "Rome"]

    with pytest.raises(BadRequestError, match="give the text one form"):
        demo.chat.completions.parse(model="any", messages=ASK, response_format=Answer, extra_body={"guided_regex": "a"})
    reply = demo.chat.completions.parse(model="any", messages=ASK, response_format=Answer, max_tokens=600, seed=1)
    parsed = reply.choices[0].message.parsed
    assert parsed is not None
    assert isinstance(parsed.is_raining, bool)


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_a_grammar_allows_what_the_family_writes(name: str) -> None:
    """Random texts that follow it are read as valid calls: 40 schemas for each of the families."""
    from elastikv import demo as demo_model

    tokenizer = read_hf_tokenizer(demo_model.path(), ())
    compiler = ConstraintCompiler(tokenizer, 3072, (0, 2))
    family = call_format(TEMPLATES[name])
    assert family is not None
    for seed in range(40):
        grammar = calls_grammar(family, [{"name": "f", "parameters": random_schema(seed)}], tokenizer, several=True)
        compiler.compile(SamplingParams(grammar=f"%llguidance {{}}\nstart: calls\n{grammar}"))


@pytest.mark.slow
def test_two_hundred_forced_calls_are_valid(demo: OpenAI) -> None:
    for seed in range(200):
        schema = random_schema(seed)
        tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
        choice = {"type": "function", "function": {"name": "f"}}
        request = {"model": "any", "messages": ASK, "tools": tools, "tool_choice": choice, "seed": seed}
        reply = demo.chat.completions.create(**request, max_tokens=1500).choices[0]
        assert reply.finish_reason == "tool_calls"
        (call,) = reply.message.tool_calls
        jsonschema_rs.validate(schema, json.loads(call.function.arguments))
