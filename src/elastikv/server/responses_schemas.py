"""Bodies of OpenAI's Responses, and what they are in the words of chat completions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from elastikv.server.errors import not_supported
from elastikv.server.schemas import INT32_MAX, Int, OpenBody, Text


class InputPart(OpenBody):
    """A part of a message; only text is served."""

    type: Text
    text: Text | None = None
    refusal: Text | None = None


class InputItem(OpenBody):
    """A message, a call, its result, or thoughts."""

    type: Text = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Text | list[InputPart] | None = None
    call_id: Text | None = None
    name: Text | None = None
    arguments: Text | None = None
    output: Text | list[InputPart] | None = None


class ResponsesTool(OpenBody):
    """A function that may be called; those that OpenAI's own server would run are not offered."""

    type: Text
    name: Text | None = None
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponsesChoice(OpenBody):
    """The function that is to be called."""

    type: Literal["function"]
    name: Text


class TextForm(OpenBody):
    """The form of the text."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextOptions(OpenBody):
    """``format``: the form of the text."""

    format: TextForm | None = None


class ReasoningOptions(OpenBody):
    """``effort`` goes to the chat template."""

    effort: Text | None = None


_REFUSED: dict[str, tuple[Any, ...]] = {
    "previous_response_id": (),
    "conversation": (),
    "background": (False,),
    "prompt": (),
    "max_tool_calls": (),
    "top_logprobs": (0,),
}
_IGNORED = {"store", "include", "truncation", "user", "metadata", "service_tier", "safety_identifier"}
_IGNORED |= {"prompt_cache_key", "prompt_cache_retention", "stream_options", "client_metadata"}


class ResponsesRequest(OpenBody):
    """What to reply to, and how. Nothing is kept of it."""

    model: Text | None = None
    input: Text | list[InputItem]
    instructions: Text | None = None
    tools: list[ResponsesTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponsesChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    max_output_tokens: Int | None = Field(None, ge=1, le=INT32_MAX)
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None

    def members(self) -> dict[str, Any]:
        """Members of a ``ChatRequest``. Raises APIError (400)."""
        for name, value in (self.model_extra or {}).items():
            if value is not None and name in _REFUSED and value not in _REFUSED[name]:
                raise not_supported(name, f"{name} is not supported: nothing is kept between requests")
        others = {
            name: value
            for name, value in (self.model_extra or {}).items()
            if name not in _IGNORED and name not in _REFUSED
        }
        choice: Any = self.tool_choice
        if isinstance(choice, ResponsesChoice):
            choice = {"type": "function", "function": {"name": choice.name}}
        return {
            **others,
            "messages": self._messages(),
            "tools": [_function(i, tool) for i, tool in enumerate(self.tools or ()) if tool.type == "function"],
            "tool_choice": choice,
            "parallel_tool_calls": self.parallel_tool_calls,
            "response_format": self._form(),
            "reasoning_effort": self.reasoning.effort if self.reasoning is not None else None,
            "max_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stream": self.stream,
        }

    @property
    def not_offered(self) -> list[str]:
        """Types of the tools that only OpenAI's server could run."""
        return [tool.type for tool in self.tools or () if tool.type != "function"]

    def _messages(self) -> list[dict[str, Any]]:
        messages = [{"role": "system", "content": self.instructions}] if self.instructions else []
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        for turn in _turns(self.input):
            last = messages[-1] if messages else None
            # Thoughts, text and calls of one turn come as items of their own.
            if last and last["role"] == turn["role"] == "assistant":
                for name, value in turn.items():
                    last[name] = value if name == "role" else last.get(name, type(value)()) + value
            else:
                messages.append(turn)
        return messages

    def _form(self) -> dict[str, Any] | None:
        form = self.text.format if self.text is not None else None
        if form is None:
            return None
        return {"type": form.type, "json_schema": {"schema": form.schema_, "strict": form.strict}}


def _function(index: int, tool: ResponsesTool) -> dict[str, Any]:
    function = {"name": tool.name or "", "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def _turns(items: list[InputItem]) -> Iterator[dict[str, Any]]:
    for index, item in enumerate(items):
        place = f"input.{index}"
        if item.type == "message" and item.role is not None:
            yield {"role": item.role, "content": _text(f"{place}.content", item.content)}
        elif item.type == "function_call":
            function = {"name": item.name or "", "arguments": item.arguments or "{}"}
            call = {"id": item.call_id, "type": "function", "function": function}
            yield {"role": "assistant", "content": "", "tool_calls": [call]}
        elif item.type == "function_call_output":
            yield {"role": "tool", "tool_call_id": item.call_id, "content": _text(f"{place}.output", item.output)}
        elif item.type == "reasoning":
            thoughts = _text(f"{place}.content", item.content)
            yield {"role": "assistant", "content": "", "reasoning_content": thoughts}
        else:
            raise not_supported(place, f"{place}: an item of type {item.type!r} is not supported")


def _text(place: str, content: str | list[InputPart] | None) -> str:
    if not isinstance(content, list):
        return content or ""
    kinds = ("input_text", "output_text", "text", "reasoning_text", "summary_text", "refusal")
    other = next((part.type for part in content if part.type not in kinds), None)
    if other is not None:
        raise not_supported(place, f"{place}: content of type {other!r} is not supported; only text is")
    return "".join(part.text or part.refusal or "" for part in content)
