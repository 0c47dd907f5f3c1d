"""Functions that a model may call: which are offered, how a model hears of them, and which it has to call."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from elastikv.server.chat_formats import call_format, calls_grammar, styled
from elastikv.server.chat_schemas import ChatRequest, NamedTool
from elastikv.server.errors import APIError, not_supported
from elastikv.weights.tokenizer import Tokenizer

_INTRODUCTION = """You may call functions. Their descriptions, one a line, each with a JSON Schema of its arguments:
<tools>
{tools}
</tools>
To call one, write
<tool_call>
{{"name": "its name", "arguments": {{...}}}}
</tool_call>"""


def check_tools(body: ChatRequest) -> None:
    """Raise APIError (400) for a choice that there is not."""
    names = [tool.function.name for tool in body.tools or ()]
    if len(set(names)) < len(names):
        raise APIError(400, "tools: two functions have the same name", param="tools")
    if isinstance(body.tool_choice, NamedTool) and body.tool_choice.function.name not in names:
        name = body.tool_choice.function.name
        raise APIError(400, f"tool_choice: there is no function {name!r} among the tools", param="tool_choice")
    if body.tool_choice == "required" and not names:
        raise APIError(400, "tool_choice: there are no tools to choose from", param="tool_choice")


def offered_tools(body: ChatRequest) -> list[dict[str, Any]]:
    """Tools as templates and parsers expect them; none where none may be called."""
    if body.tool_choice == "none":
        return []
    return [tool.model_dump(exclude_none=True) for tool in body.tools or ()]


def forced_calls(body: ChatRequest, tokenizer: Tokenizer, form: dict[str, Any]) -> dict[str, Any]:
    """The form of a reply, for ``SamplingParams``, where it has to be a call, or may be one beside ``form``.

    Raises APIError (400) for a model of which nobody knows how it writes calls.
    """
    choice = body.tool_choice
    if not body.tools or choice == "none" or (choice in (None, "auto") and not form):
        return form
    family = call_format(tokenizer.chat_template or "")
    if family is None:
        raise not_supported("tool_choice", "tool_choice: how this model writes calls is not known; only auto is served")
    if choice in (None, "auto") and "json_schema" not in form:
        raise APIError(400, "beside tools only JSON can be asked for; or use tool_choice", param="tools")
    is_one = isinstance(choice, NamedTool)
    functions = [
        tool["function"]
        for tool in offered_tools(body)
        if not isinstance(choice, NamedTool) or tool["function"]["name"] == choice.function.name
    ]
    several = not is_one and body.parallel_tool_calls is not False
    grammar = calls_grammar(family, functions, tokenizer, several=several)
    if choice not in (None, "auto"):
        return {"grammar": f"%llguidance {{}}\nstart: calls\n{grammar}"}
    schema = json.loads(form["json_schema"]) if isinstance(form["json_schema"], str) else form["json_schema"]
    return {"grammar": f"%llguidance {{}}\nstart: calls | content\ncontent: %json {styled(schema)}\n{grammar}"}


def as_text(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation for a template that never heard of tools: descriptions and calls stand in the texts."""
    if not tools and not any(message["role"] == "tool" or "tool_calls" in message for message in messages):
        return list(messages)
    told = [_told(message) for message in messages]
    if tools:
        lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
        text = _INTRODUCTION.format(tools=lines)
        if told and told[0]["role"] == "system":
            told[0]["content"] = f"{told[0]['content']}\n\n{text}"
        else:
            told.insert(0, {"role": "system", "content": text})
    return told


def _told(message: dict[str, Any]) -> dict[str, Any]:
    """Calls behind the content; a result as the user's words, for many templates know only two who speak."""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    calls = [
        f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
        for call in message.get("tool_calls", ())
    ]
    return {**message, "content": "\n".join(part for part in (message["content"], *calls) if part)}
