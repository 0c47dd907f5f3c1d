"""Bodies of requests. Unknown members that would change nothing are ignored, as OpenAI and llama-server do."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from typing_extensions import override

MAX_CHOICES = 128
INT32_MAX = 2**31 - 1


def _encodable(text: str) -> str:
    """JSON may escape half of a surrogate pair; no tokenizer has a use for it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half of a surrogate pair") from error
    return text


def _encodable_members(members: Any) -> Any:
    """Refuse half of a surrogate pair in any text of a JSON value."""
    try:
        _encodable(json.dumps(members, ensure_ascii=False))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return members


def _whole_number(value: Any) -> Any:
    """JSON does not tell 3.0 from 3."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Text = Annotated[str, AfterValidator(_encodable)]
Int = Annotated[int, BeforeValidator(_whole_number)]
TokenId = Annotated[Int, Field(ge=0, le=INT32_MAX)]
Budget = Annotated[Int, Field(ge=-1, le=INT32_MAX)]
MaxTokens = Annotated[Int, Field(ge=-1, le=INT32_MAX)]


class Body(BaseModel):
    """JSON's types, and no guesses: ``true`` is no token and ``"3"`` no number."""

    model_config = ConfigDict(allow_inf_nan=False, strict=True)


class OpenBody(Body):
    """Members without a name here are kept, in ``model_extra``."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="after")
    def _extra_is_encodable(self) -> OpenBody:
        for name, value in (self.model_extra or {}).items():
            try:
                _encodable_members({name: value})
            except ValueError as error:
                raise ValueError(f"its member {name!r} cannot be written: {error}") from error
        return self


class StreamOptions(Body):
    """``include_usage``: a last chunk with the numbers of tokens."""

    include_usage: bool = False


class JsonSchemaFormat(OpenBody):
    """``schema``: a JSON Schema; ``strict``: refuse what of it could not be enforced."""

    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(OpenBody):
    """``text``, any JSON object, or one that follows a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class StructuredOutputs(Body):
    """vLLM's: one of these."""

    json_: dict[str, Any] | Text | None = Field(None, alias="json")
    json_object: bool | None = None
    regex: Text | None = None
    choice: list[Text] | None = None
    grammar: Text | None = None


class GenerationRequest(Body):
    """What chat and text completions have in common. None: the engine's default.

    Ranges are ``SamplingParams``' business; bounds here only keep integers within the machine's. Members without
    a name here are kept in ``model_extra``: ``parameters`` says which of them are refused.
    """

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    n: Int | None = Field(None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Text | list[Text] | None = None
    max_tokens: MaxTokens | None = None
    n_predict: MaxTokens | None = None
    seed: Int | None = Field(None, ge=-(2**63), lt=2**64)
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int | None = Field(None, le=INT32_MAX)
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_last_n: Int | None = Field(None, le=INT32_MAX)
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: Int | None = Field(None, le=INT32_MAX)
    dry_penalty_last_n: Int | None = Field(None, le=INT32_MAX)
    dry_sequence_breakers: list[Text] | None = None
    top_n_sigma: float | None = None
    typical_p: float | None = Field(None, validation_alias=AliasChoices("typical_p", "typ_p"))
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    samplers: list[Text] | Text | None = None
    logit_bias: dict[Annotated[TokenId, Field(strict=False)], float] | None = None
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    json_schema: dict[str, Any] | None = None
    grammar: Text | None = None
    guided_json: dict[str, Any] | Text | None = None
    guided_regex: Text | None = None
    guided_choice: list[Text] | None = None
    guided_grammar: Text | None = None
    structured_outputs: StructuredOutputs | None = None
    id_slot: Int | None = Field(None, ge=-1, le=INT32_MAX)
    cache_prompt: bool | None = None

    @property
    def token_limit(self) -> int | None:
        """Tokens to generate at most, -1 for no bound; ``n_predict`` is what llama-server calls it."""
        return self.max_tokens if self.n_predict is None else self.n_predict

    @property
    def n_choices(self) -> int:
        """Generations per prompt."""
        return self.n or 1

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a chunk of the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class TextPart(Body):
    """A part of a message; only those of type "text" are served."""

    type: str
    text: Text | None = None


class FunctionCall(OpenBody):
    """``arguments``: JSON of an object, as OpenAI writes it, or the object itself."""

    name: Text
    arguments: str | dict[str, Any] | None = None

    @field_validator("arguments")
    @classmethod
    def _hold_an_object(cls, arguments: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        if not isinstance(_encodable_members(parsed_arguments(arguments)), dict):
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


class CompletionRequest(GenerationRequest):
    """One or several prompts, as text or token ids, to continue, and how."""

    prompt: Text | list[TokenId] | list[Text] | list[list[TokenId]]
    echo: bool | None = None
    suffix: Text | None = None
    logprobs: Int | None = Field(None, le=INT32_MAX)
    best_of: Int | None = Field(None, ge=1, le=MAX_CHOICES)


class JsonPrompt(Body):
    """A prompt as an object, which could have pictures with other models."""

    prompt_string: Text
    multimodal_data: list[Any] | None = Field(None, max_length=0)


Bias = float | Literal[False]
Biases = dict[Text, Bias] | list[Annotated[list[TokenId | Text | Bias], Field(min_length=2, max_length=2)]]


class LlamaRequest(GenerationRequest):
    """llama-server's ``/completion``; a prompt may mix texts and token ids.

    logit_bias: pairs as well as a mapping, of token ids or of texts, whose tokens are all meant; false bans.
    """

    prompt: Text | JsonPrompt | list[Text | TokenId | JsonPrompt | list[TokenId]]
    logit_bias: Biases | None = None  # type: ignore[assignment]
    n_probs: Int | None = Field(None, ge=0, le=INT32_MAX)
    return_tokens: bool | None = None
    response_fields: list[Text] | None = None


class ExtraFile(Body):
    """A file that the text to fill in may refer to."""

    text: Text
    filename: Text = "tmp"


class InfillRequest(LlamaRequest):
    """``prompt``: how the text in the middle begins."""

    prompt: Text = ""
    input_prefix: Text
    input_suffix: Text
    input_extra: list[ExtraFile] | None = None


class EmbeddingsRequest(OpenBody):
    """Texts, or token ids, to embed."""

    model: Text | None = None
    input: Text | list[TokenId] | list[Text] | list[list[TokenId]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Int | None = Field(None, ge=1, le=INT32_MAX)


class EmbeddingRequest(OpenBody):
    """llama-server's; ``embd_normalize``: 2 for the Euclidean length, -1 for none."""

    content: Text | list[Text | TokenId | list[TokenId]] | None = None
    input: Text | list[Text | TokenId | list[TokenId]] | None = None
    embd_normalize: Literal[-1, 2] | None = None


class ApplyTemplateRequest(ChatRequest):
    """A conversation to write as the model would get it."""


class TokenizeRequest(Body):
    """``content``: the text; ``add_special``: with the tokens that the model wants around a text."""

    content: Text
    add_special: bool = False
    with_pieces: bool = False


class DetokenizeRequest(Body):
    """``tokens``: the ids to turn into text."""

    tokens: list[TokenId]


class SlotFileRequest(Body):
    """``filename``: a plain name inside ``--slot-save-path``."""

    filename: Text | None = None


class MemoryRequest(Body):
    """One wish: ``n_cells``, ``shrink``, or ``budget``."""

    n_cells: Int | None = Field(None, ge=1, le=INT32_MAX)
    shrink: Literal[True] | None = None
    budget: Text | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> MemoryRequest:
        if sum(wish is not None for wish in (self.n_cells, self.shrink, self.budget)) != 1:
            raise ValueError('give exactly one of {"n_cells": N}, {"shrink": true} and {"budget": "2GiB"}')
        return self
