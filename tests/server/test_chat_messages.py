"""What a chat template gets to see of a conversation."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fake_engine import FakeAsyncLLM, FakeTokenizer
from running import RunningServer
from support.tiny_tokenizers import byte_level_tokenizer

from elastikv.server.chat_schemas import ChatMessage
from elastikv.weights.tokenizer import Tokenizer

CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn", "days": 2}'}}
ASKED = {"role": "user", "content": "is it raining?"}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "Bonn, I think"}
ANSWERED = {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "rain"}


class Templated(FakeTokenizer):
    """A byte is a token, and the template is a real one."""

    def __init__(self, template: str) -> None:
        self.chat_template = template
        self._renderer = Tokenizer(byte_level_tokenizer("gpt-2"), chat_template=template)

    def render_chat(self, messages: Any, **options: object) -> str:
        return self._renderer.render_chat(messages, **options)


def rendered(server: RunningServer, template: str, *messages: dict) -> str:
    """What the template writes: the fake engine says its prompt again."""
    server.engine.llm.tokenizer = Templated(template)
    response = server.post("/v1/chat/completions", messages=messages)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


@pytest.fixture
def engine() -> FakeAsyncLLM:
    return FakeAsyncLLM(n_ctx=2048)


def test_the_template_sees_calls_results_and_thoughts(server: RunningServer) -> None:
    template = (
        "{% for m in messages %}[{{ m.role }}|{{ m.name }}|{{ m.tool_call_id }}|{{ m.reasoning_content }}|"
        "{{ m.content }}{% for c in m.tool_calls or [] %}|{{ c.id }} {{ c.type }} {{ c.function.name }}"
        "{% for k, v in c.function.arguments.items() %} {{ k }}={{ v }}{% endfor %}{% endfor %}]{% endfor %}"
    )
    assert rendered(server, template, ASKED, CALLED, ANSWERED) == (
        "[user||||is it raining?]"
        "[assistant|||Bonn, I think||c1 function weather city=Bonn days=2]"
        "[tool|weather|c1||rain]"
    )


def test_whatever_else_a_message_has_is_handed_on(server: RunningServer) -> None:
    seen = json.loads(rendered(server, "{{ messages | tojson }}", {**ASKED, "mood": {"level": 3}, "refusal": None}))
    assert seen == [{**ASKED, "mood": {"level": 3}}]


@pytest.mark.parametrize("arguments", ["", None, {}, "{}"])
def test_a_call_without_arguments_has_an_empty_object(server: RunningServer, arguments: object) -> None:
    call = {"function": {"name": "now", "arguments": arguments}}
    turn = {"role": "assistant", "tool_calls": [call]}
    (seen,) = json.loads(rendered(server, "{# tool_calls #}{{ messages | tojson }}", turn))
    assert seen["tool_calls"] == [{"type": "function", "function": {"name": "now", "arguments": {}}}]
    assert seen["content"] == ""


def test_a_template_that_wants_the_arguments_as_text_gets_them(server: RunningServer) -> None:
    template = "{% set call = messages[0].tool_calls[0].function %}{{ call.name + call.arguments }}"
    assert rendered(server, template, CALLED) == 'weather{"city": "Bonn", "days": 2}'


@pytest.mark.parametrize("arguments", ["{", "[1]", "1", '{"x": "\\ud800"}', "[" * 100_000])
def test_arguments_that_are_no_object_are_named(server: RunningServer, arguments: str) -> None:
    turn = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    response = server.post("/v1/chat/completions", messages=[turn])
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages.0.tool_calls.0.function.arguments"


@pytest.mark.parametrize("raw", ['"\\ud800"', "[" * 400 + "]" * 400, '{"\\udfff": 1}'])
def test_members_that_no_template_could_write(server: RunningServer, raw: str) -> None:
    body = '{"messages": [{"role": "user", "content": "x", "extra": %s}]}' % raw  # noqa: UP031
    server.engine.llm.tokenizer = Templated("{{ messages | tojson }}")
    response = server.http.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (200, 400), response.text


def test_the_old_form_of_a_call_is_refused_by_name(server: RunningServer) -> None:
    turn = {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}
    response = server.post("/v1/chat/completions", messages=[ASKED, turn])
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages.1.function_call"


def test_a_message_of_the_openai_client_comes_back_as_it_was() -> None:
    """``message.model_dump()`` has a null for everything that was not said."""
    dumped = {"role": "assistant", "content": "hi", "refusal": None, "audio": None, "tool_calls": None}
    assert ChatMessage.model_validate(dumped).model_dump(exclude_none=True) == {"role": "assistant", "content": "hi"}


def test_a_template_that_never_heard_of_tools_gets_them_as_text(server: RunningServer) -> None:
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    assert rendered(server, template, ASKED, CALLED, ANSWERED) == (
        "[user] is it raining?\n"
        '[assistant] <tool_call>\n{"name": "weather", "arguments": {"city": "Bonn", "days": 2}}\n</tool_call>\n'
        "[user] <tool_response>\nrain\n</tool_response>\n"
    )
