"""Bodies of chat completions, which the other protocols' conversations become."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import override

from elastikv.server.schemas import (
    INT32_MAX,
    GenerationRequest,
    Int,
    MaxTokens,
    OpenBody,
    Text,
    TextPart,
    encodable_members,
)

Budget = Annotated[Int, Field(ge=-1, le=INT32_MAX)]


class FunctionCall(OpenBody):
    """``arguments``: JSON of an object, as OpenAI writes it, or the object itself."""

    name: Text
    arguments: str | dict[str, Any] | None = None

    @field_validator("arguments")
    @classmethod
    def _hold_an_object(cls, arguments: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        if not isinstance(encodable_members(parsed_arguments(arguments)), dict):
            raise ValueError("a call's arguments must be a JSON object")
        return arguments


def parsed_arguments(arguments: str | dict[str, Any] | None) -> Any:
    """The object that a call's arguments are; no arguments are an empty one. Raises ValueError."""
    try:
        return (json.loads(arguments) if isinstance(arguments, str) and arguments.strip() else arguments) or {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a call's arguments must be a JSON object ({error})") from error


class ToolCall(OpenBody):
    """A call of a function that an assistant's message made."""

    id: Text | None = None
    type: Text = "function"
    function: FunctionCall


class ChatMessage(OpenBody):
    """A turn, handed to the chat template with all its members.

    ``content`` may be text or a list of text parts; pictures and sound are refused.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    name: Text | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Text | None = None


class Function(OpenBody):
    """``parameters``: a JSON Schema of an object."""

    name: Text = Field(min_length=1)
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(OpenBody):
    """Something that the model may call; only functions are served."""

    type: Literal["function"] = "function"
    function: Function


class FunctionName(OpenBody):
    """A function by its name."""

    name: Text


class NamedTool(OpenBody):
    """The one tool that is to be called."""

    type: Literal["function"] = "function"
    function: FunctionName


class ChatRequest(GenerationRequest):
    """A conversation to reply to, and how."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Int | None = Field(None, le=INT32_MAX)
    chat_template_kwargs: dict[Text, bool | int | float | Text | None] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    reasoning_format: Literal["none", "auto", "deepseek"] | None = None
    reasoning_effort: Text | None = None
    enable_thinking: bool | None = None
    include_reasoning: bool | None = None
    reasoning_budget_tokens: Budget | None = None
    thinking_budget_tokens: Budget | None = None
    thinking_token_budget: Budget | None = None

    @property
    @override
    def token_limit(self) -> int | None:
        """Tokens to generate at most; ``max_completion_tokens``, OpenAI's newer name, goes first."""
        return super().token_limit if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def thinking_budget(self) -> int | None:
        """Tokens that thoughts may take, by whichever of its names; None: no bound."""
        names = (self.reasoning_budget_tokens, self.thinking_budget_tokens, self.thinking_token_budget)
        return next((budget for budget in names if budget is not None and budget >= 0), None)

    @property
    def prefill(self) -> ChatMessage | None:
        """The assistant's message that the reply continues, as with llama-server, if the last one is of that kind."""
        last = self.messages[-1]
        has_called = last.tool_calls or (last.model_extra or {}).get("function_call")
        continues = last.role == "assistant" and not has_called and self.continue_final_message is not False
        return last if continues else None

    @property
    def template_options(self) -> dict[str, Any]:
        """What the chat template is told besides messages and tools."""
        options: dict[str, Any] = {}
        if self.reasoning_effort is not None:
            options["reasoning_effort"] = self.reasoning_effort
            if self.reasoning_effort == "none":
                options["enable_thinking"] = False
        if self.enable_thinking is not None:
            options["enable_thinking"] = self.enable_thinking
        return options | (self.chat_template_kwargs or {})

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self


class ApplyTemplateRequest(ChatRequest):
    """A conversation to write as the model would get it."""
