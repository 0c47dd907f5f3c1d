"""Replies of each family of models, read whole and in pieces of any size."""

from __future__ import annotations

import json
import random

import pytest

from elastikv.server.chat import message
from elastikv.server.chat_formats import call_format
from elastikv.server.chat_parser import MessageParser, response_template

TEMPLATES = {
    "hermes": '{{ tools }}<tool_call>{"name": "arguments"}',
    "qwen3.5": "{{ tools }}<tool_call><function=x><parameter=y>",
    "llama3": '{{ tools }}<|start_header_id|>{"parameters"}',
    "mistral": "{{ tools }}[TOOL_CALLS]",
    "mistral-v11": "{{ tools }}[TOOL_CALLS][ARGS]",
    "deepseek": "{{ tools }}<｜tool▁call▁begin｜><｜tool▁sep｜>",
    "deepseek-r1": "{{ tools }}<｜tool▁call▁begin｜><｜tool▁sep｜>```json",
    "glm": "{{ tools }}<tool_call><arg_key>",
    "minimax": "{{ tools }}<minimax:tool_call><invoke name=",
    "kimi": "{{ tools }}<|tool_call_begin|><|tool_call_argument_begin|>",
    "nemotron": "{{ tools }}<TOOLCALL>",
    "granite": "{{ tools }}<|tool_call|>",
    "unheard of": "{{ messages }}",
}
CALLS = {
    "hermes": '<tool_call>\n{"name": "a", "arguments": {"x": "}\\"{", "y": [1, {}]}}\n</tool_call>\n'
    '<tool_call>\n{"name": "b", "arguments": {}}\n</tool_call>',
    "qwen3.5": '<tool_call>\n<function=a>\n<parameter=x>\n}"{\n</parameter>\n<parameter=y>\n[1, {}]\n</parameter>\n'
    "</function>\n</tool_call>\n<tool_call>\n<function=b>\n</function>\n</tool_call>",
    "mistral": '[TOOL_CALLS][{"name": "a", "arguments": {"x": "}\\"{", "y": [1, {}]}}, {"name": "b", "arguments": {}}]',
    "mistral-v11": '[TOOL_CALLS]a[ARGS]{"x": "}\\"{", "y": [1, {}]}[TOOL_CALLS]b[ARGS]{}',
    "deepseek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>a<｜tool▁sep｜>"
    '{"x": "}\\"{", "y": [1, {}]}<｜tool▁call▁end｜><｜tool▁call▁begin｜>b<｜tool▁sep｜>{}'
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
}
CALLS["deepseek-r1"] = (
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>a\n```json\n{"x": "}\\"{", "y": [1, {}]}\n```'
    "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>b\n```json\n{}\n```"
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
CALLS["glm"] = (
    '\n<tool_call>a\n<arg_key>x</arg_key>\n<arg_value>}"{</arg_value>\n<arg_key>y</arg_key>\n<arg_value>[1, {}]'
    "</arg_value>\n"
    "</tool_call>\n<tool_call>b\n</tool_call>"
)
CALLS["minimax"] = (
    '\n<minimax:tool_call>\n<invoke name="a">\n<parameter name="x">}"{</parameter>\n<parameter name="y">[1, {}]'
    "</parameter>\n"
    '</invoke>\n<invoke name="b">\n</invoke>\n</minimax:tool_call>'
)
CALLS["kimi"] = (
    "<|tool_calls_section_begin|><|tool_call_begin|>functions.a:0<|tool_call_argument_begin|>"
    '{"x": "}\\"{", "y": [1, {}]}<|tool_call_end|><|tool_call_begin|>functions.b:1<|tool_call_argument_begin|>{}'
    "<|tool_call_end|><|tool_calls_section_end|>"
)
_LIST = '[{"name": "a", "arguments": {"x": "}\\"{", "y": [1, {}]}}, {"name": "b", "arguments": {}}]'
CALLS["nemotron"] = f"<TOOLCALL>{_LIST}</TOOLCALL>"
CALLS["granite"] = f"<|tool_call|>{_LIST}"
CALLS["unheard of"] = CALLS["hermes"]
TOOLS = [{"function": {"name": "a", "parameters": {"properties": {"x": {"type": "string"}, "y": {"type": "array"}}}}}]


def read(template: str, text: str, *, seed: int | None = None, thinks: bool = False, prefix: str = "") -> dict:
    """Message of a reply that comes whole, or in random pieces."""
    family = call_format(template)
    assert family is not None
    parser = MessageParser(response_template(family, thinks=thinks), prefix, head=family.head, tools=TOOLS)
    rng = random.Random(seed)
    pieces = []
    while text:
        n = len(text) if seed is None else rng.randint(1, 6)
        pieces += parser.feed(text[:n])
        text = text[n:]
    whole = message([*pieces, *parser.finish()])
    for call in whole.get("tool_calls", ()):
        assert len(call.pop("id")) == 9
        del call["index"], call["type"]
        call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return whole


BOTH = [
    {"function": {"name": "a", "arguments": {"x": '}"{', "y": [1, {}]}}},
    {"function": {"name": "b", "arguments": {}}},
]
SEEDS = pytest.mark.parametrize("seed", [None, 1, 2, 3])


@SEEDS
@pytest.mark.parametrize("name", list(CALLS))
def test_calls_behind_content(name: str, seed: int | None) -> None:
    text = "Let me see." + CALLS[name]
    assert read(TEMPLATES[name], text, seed=seed) == {"content": "Let me see.", "tool_calls": BOTH}
    assert read(TEMPLATES[name], CALLS[name], seed=seed) == {"tool_calls": BOTH}


@SEEDS
@pytest.mark.parametrize("mark", ["", "<|python_tag|>"])
def test_llama_writes_nothing_but_the_call(mark: str, seed: int | None) -> None:
    text = mark + '{"name": "a", "parameters": {"x": "1", "y": []}}'
    calls = [{"function": {"name": "a", "arguments": {"x": "1", "y": []}}}]
    assert read(TEMPLATES["llama3"], text, seed=seed) == {"tool_calls": calls}
    assert read(TEMPLATES["llama3"], "in {braces}", seed=seed) == {"content": "in {braces}"}


@SEEDS
@pytest.mark.parametrize("prefix", ["", "<think>"])
def test_thoughts_come_first(prefix: str, seed: int | None) -> None:
    text = ("" if prefix else "<think>") + "\nWell,\nso.\n</think>\n\nHello  you\n\n" + CALLS["hermes"]
    expected = {"reasoning_content": "Well,\nso.", "content": "Hello  you", "tool_calls": BOTH}
    assert read(TEMPLATES["hermes"], text, seed=seed, thinks=True, prefix=prefix) == expected


@SEEDS
@pytest.mark.parametrize("text", ["  plain \n", "a < b <tool", "<tool_call>\nnot JSON\n</tool_call>", ""])
def test_what_is_no_call_is_content(text: str, seed: int | None) -> None:
    found = read(TEMPLATES["hermes"], text, seed=seed, thinks=True).get("content", "")
    assert found.split() == text.replace("<tool_call>\nnot", "not").replace("</tool_call>", "").split()


def test_arguments_are_told_as_they_come() -> None:
    family = call_format(TEMPLATES["hermes"])
    parser = MessageParser(response_template(family, thinks=False), head=family.head)
    assert parser.feed('<tool_call>\n{"name": "a", "argum') == []
    (first,) = parser.feed('ents": {"city": "Bo')
    assert (first.name, first.call, first.text) == ("a", 0, '{"city": "Bo')
    (second,) = parser.feed('nn"}}\n</tool_call>')
    assert (second.name, second.text) == (None, 'nn"}')


def test_a_call_that_was_cut_keeps_what_there_is() -> None:
    family = call_format(TEMPLATES["hermes"])
    parser = MessageParser(response_template(family, thinks=False), head=family.head)
    pieces = [*parser.feed('<tool_call>\n{"name": "a", "arguments": {"city": "Bo'), *parser.finish()]
    assert message(pieces)["tool_calls"][0]["function"] == {"name": "a", "arguments": '{"city": "Bo'}


def test_a_broken_region_of_a_models_own_template_is_content() -> None:
    fields = {"tool_calls": {"open": "<call>", "close": "</call>", "content": "json"}, "content": {}}
    parser = MessageParser({"start_anchor": "<a>", "fields": fields}, prefix="<a>")
    pieces = [*parser.feed("hm <call>{no"), *parser.feed("</call> and"), *parser.feed(" so on"), *parser.finish()]
    assert message(pieces) == {"content": "hm {no</call> and so on"}


def test_a_template_with_tools_of_an_unknown_kind_has_no_format() -> None:
    assert call_format("{{ tools }} <|call|>") is None
