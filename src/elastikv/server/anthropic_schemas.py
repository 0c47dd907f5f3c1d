"""Bodies of Anthropic's Messages, and what they are in OpenAI's words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from pydantic import Field

from elastikv.server.errors import not_supported
from elastikv.server.schemas import INT32_MAX, Int, OpenBody, Text


class ContentBlock(OpenBody):
    """Text, a call, its result, or thoughts; pictures and documents are refused."""

    type: Text
    text: Text | None = None
    thinking: Text | None = None
    id: Text | None = None
    name: Text | None = None
    input: dict[str, Any] | None = None
    tool_use_id: Text | None = None
    content: Text | list[dict[str, Any]] | None = None


class AnthropicMessage(OpenBody):
    """A turn."""

    role: Literal["user", "assistant", "system"]
    content: Text | list[ContentBlock]


class AnthropicTool(OpenBody):
    """A function that may be called; those that Anthropic's own server would run are not offered."""

    type: Text | None = None
    name: Text = Field(min_length=1)
    description: Text | None = None
    input_schema: dict[str, Any] | None = None


class AnthropicChoice(OpenBody):
    """What is to be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: Text | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(OpenBody):
    """Whether to think, and for how many tokens at most."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Int | None = Field(None, ge=0, le=INT32_MAX)


class OutputConfig(OpenBody):
    """``format``: the form of the text."""

    format: dict[str, Any] | None = None


class CountRequest(OpenBody):
    """A conversation whose tokens are to be counted."""

    model: Text | None = None
    messages: list[AnthropicMessage] = Field(min_length=1)
    system: Text | list[ContentBlock] | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: AnthropicChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None

    def members(self) -> dict[str, Any]:
        """Members of a ``ChatRequest``. Raises APIError (400)."""
        system = [{"role": "system", "content": _text("system", self.system)}] if self.system else []
        members: dict[str, Any] = {
            "messages": [*system, *(turn for i, message in enumerate(self.messages) for turn in _turns(i, message))],
            "tools": [_tool(tool) for tool in self.tools or () if _is_function(tool)],
        }
        if self.tool_choice is not None:
            members |= _choice(self.tool_choice)
        if self.thinking is not None:
            members["enable_thinking"] = self.thinking.type != "disabled"
            members["reasoning_budget_tokens"] = self.thinking.budget_tokens
        form = self.output_config.format if self.output_config is not None else None
        if form:
            if form.get("type") != "json_schema":
                raise not_supported("output_config.format", "output_config.format: only json_schema is served")
            members["response_format"] = {"type": "json_schema", "json_schema": {"schema": form.get("schema")}}
        return members

    @property
    def not_offered(self) -> list[str]:
        """Types of the tools that only Anthropic's server could run."""
        return [tool.type or "" for tool in self.tools or () if not _is_function(tool)]


class MessagesRequest(CountRequest):
    """A conversation to reply to, and how."""

    max_tokens: Int = Field(ge=1, le=INT32_MAX)
    stop_sequences: list[Text] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int | None = Field(None, ge=0, le=INT32_MAX)

    def members(self) -> dict[str, Any]:
        """Members of a ``ChatRequest``. Raises APIError (400)."""
        settings = {name: getattr(self, name) for name in ("max_tokens", "temperature", "top_p", "top_k")}
        # llama.cpp's own, and what else may be refused by name.
        known = {"metadata", "service_tier", "container", "cache_control", "betas", "context_management"}
        others = {name: value for name, value in (self.model_extra or {}).items() if name not in known}
        return {**others, **settings, "stop": self.stop_sequences, **super().members()}


def _is_function(tool: AnthropicTool) -> bool:
    return tool.type in (None, "custom")


def _tool(tool: AnthropicTool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    return {"type": "function", "function": function}


def _choice(choice: AnthropicChoice) -> dict[str, Any]:
    kinds: dict[str, Any] = {"any": "required", "tool": {"type": "function", "function": {"name": choice.name or ""}}}
    parallel = None if choice.disable_parallel_tool_use is None else not choice.disable_parallel_tool_use
    return {"tool_choice": kinds.get(choice.type, choice.type), "parallel_tool_calls": parallel}


def _turns(index: int, message: AnthropicMessage) -> Iterator[dict[str, Any]]:
    """Results of calls are turns of their own, and come first."""
    if isinstance(message.content, str):
        yield {"role": message.role, "content": message.content}
        return
    place = f"messages.{index}.content"
    for block in message.content:
        if block.type == "tool_result":
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": _result(place, block)}
    thoughts = "".join(block.thinking or "" for block in message.content if block.type == "thinking")
    calls = [_call(block) for block in message.content if block.type == "tool_use"]
    rest = [block for block in message.content if block.type not in _OTHERS]
    if rest or calls or thoughts or message.role != "user":
        turn = {"role": message.role, "content": _text(place, rest), "reasoning_content": thoughts or None}
        yield {**turn, "tool_calls": calls or None}


_OTHERS = ("tool_result", "tool_use", "thinking", "redacted_thinking")


def _call(block: ContentBlock) -> dict[str, Any]:
    arguments = json.dumps(block.input or {}, ensure_ascii=False)
    return {"id": block.id, "type": "function", "function": {"name": block.name or "", "arguments": arguments}}


def _result(place: str, block: ContentBlock) -> str:
    if not isinstance(block.content, list):
        return block.content or ""
    return "".join(_part(place, part.get("type"), part.get("text")) for part in block.content)


def _text(place: str, content: str | Sequence[ContentBlock]) -> str:
    return content if isinstance(content, str) else "".join(_part(place, block.type, block.text) for block in content)


def _part(place: str, kind: Any, text: Any) -> str:
    if kind != "text" or not isinstance(text, str | None):
        raise not_supported(place, f"{place}: content of type {kind!r} is not supported; only text is")
    return text or ""
