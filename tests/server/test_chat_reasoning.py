"""Thoughts apart from the answer: split, streamed, hidden, bounded, and those of earlier turns."""

from __future__ import annotations

import json

import pytest
from openai import OpenAI
from running import RunningServer
from test_chat_messages import Templated

from elastikv.engine.params import Reasoning

TEXT = "<think>\nBonn, I think.\n</think>\n\nIt rains."
MARK = "{# <think> </think> #}"


def says(server: RunningServer, text: str = TEXT, template: str = MARK + "{{ messages[-1].content }}") -> dict:
    """The fake engine says its prompt again: here what the conversation ends with."""
    server.engine.llm.tokenizer = Templated(template)
    return {"messages": [{"role": "user", "content": text}]}


def message_of(server: RunningServer, body: dict, **wish: object) -> dict:
    response = server.post("/v1/chat/completions", **body, **wish)
    assert response.status_code == 200, response.text
    message = response.json()["choices"][0]["message"]
    return {name: message[name] for name in ("reasoning_content", "content") if name in message}


def test_thoughts_and_answer_are_apart(server: RunningServer) -> None:
    split = {"reasoning_content": "Bonn, I think.", "content": "It rains."}
    assert message_of(server, says(server)) == split
    assert message_of(server, says(server), reasoning_format="auto") == split
    assert message_of(server, says(server), reasoning_format="deepseek") == split
    assert message_of(server, says(server), reasoning_format="none") == {"content": TEXT}
    assert message_of(server, says(server), include_reasoning=False) == {"content": "It rains."}
    assert server.engine.requests[-1].skip_special_tokens is False


def test_a_stream_is_split_the_same(server: RunningServer, client: OpenAI) -> None:
    found = {"reasoning_content": "", "content": ""}
    for chunk in client.chat.completions.create(model="any", **says(server), stream=True):
        delta = chunk.choices[0].delta
        for name in found:
            found[name] += getattr(delta, name, None) or ""
    assert found == {"reasoning_content": "Bonn, I think.", "content": "It rains."}


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("", Reasoning(budget=8)),
        ("<think>\n", Reasoning(is_open=True, budget=8)),
        ("<think>\n\n</think>\n\n", None),
    ],
)
def test_a_budget_reaches_the_engine(server: RunningServer, end: str, expected: Reasoning | None) -> None:
    for name in ("reasoning_budget_tokens", "thinking_budget_tokens", "thinking_token_budget"):
        message_of(server, says(server, "x", MARK + "{{ messages[-1].content }}" + end), **{name: 8})
        assert server.engine.requests[-1].reasoning == expected
    message_of(server, says(server, "x", "{{ messages[-1].content }}"), reasoning_budget_tokens=8)
    assert server.engine.requests[-1].reasoning is None


def test_the_template_is_told_whether_to_think(server: RunningServer) -> None:
    template = "{{ enable_thinking }} {{ reasoning_effort }}"
    assert message_of(server, says(server, "", template), enable_thinking=False)["content"] == "False "
    assert message_of(server, says(server, "", template), reasoning_effort="low")["content"] == " low"
    assert message_of(server, says(server, "", template), reasoning_effort="none")["content"] == "False none"
    options = {"enable_thinking": True}
    assert message_of(server, says(server, "", template), chat_template_kwargs=options)["content"] == "True "


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_the_template_sees_thoughts_of_earlier_turns(server: RunningServer, name: str) -> None:
    server.engine.llm.tokenizer = Templated("{{ messages[0].reasoning_content | tojson }}")
    turns = [{"role": "assistant", "content": "hi", name: "Hm."}, {"role": "user", "content": "so?"}]
    assert json.loads(message_of(server, {"messages": turns})["content"]) == "Hm."


@pytest.mark.parametrize("wish", [{"reasoning_format": "xml"}, {"reasoning_budget_tokens": -2}])
def test_what_is_no_wish_is_refused_by_name(server: RunningServer, wish: dict) -> None:
    response = server.post("/v1/chat/completions", **says(server), **wish)
    assert response.json()["error"]["param"] == next(iter(wish))


def test_a_models_own_response_template_goes_first(server: RunningServer) -> None:
    fields = {"thinking": {"open": "[T]", "close": "[/T]"}, "content": {}}
    body = says(server, "[T]hm[/T]yes", "{{ messages[-1].content }}")
    server.engine.llm.tokenizer.response_template = {"start_anchor": "[T]hm[/T]yes", "fields": fields}
    assert message_of(server, body) == {"reasoning_content": "hm", "content": "yes"}
    assert message_of(server, body, reasoning_format="none") == {"content": "[T]hm[/T]yes"}
