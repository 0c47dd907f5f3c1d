"""Bodies of requests: what all that generate have in common, and OpenAI's about texts.

Each other protocol has a file of its own. Unknown members that would change nothing are ignored, as OpenAI and
llama-server do.
"""

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
    model_validator,
)

MAX_CHOICES = 128
INT32_MAX = 2**31 - 1


def _encodable(text: str) -> str:
    """JSON may escape half of a surrogate pair; no tokenizer has a use for it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half of a surrogate pair") from error
    return text


def encodable_members(members: Any) -> Any:
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
                encodable_members({name: value})
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
    timings_per_token: bool | None = None
    return_progress: bool | None = None
    verbose: bool | None = None

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


class JsonPrompt(Body):
    """A prompt as an object, which could have pictures with other models."""

    prompt_string: Text
    multimodal_data: list[Any] | None = Field(None, max_length=0)


class ContentPrompt(Body):
    """A prompt as the content of a message."""

    content: list[TextPart] = Field(min_length=1)


Prompt = Text | JsonPrompt | ContentPrompt
Prompts = Prompt | list[Prompt | TokenId | list[Text | TokenId]]
"""One or several as llama-server has them: a list with token ids in it is one prompt, whose texts come between."""


class CompletionRequest(GenerationRequest):
    """One or several prompts, as text or token ids, to continue, and how."""

    prompt: Text | list[TokenId] | list[Text] | list[list[TokenId]]
    echo: bool | None = None
    suffix: Text | None = None
    logprobs: Int | None = Field(None, le=INT32_MAX)
    best_of: Int | None = Field(None, ge=1, le=MAX_CHOICES)


class EmbeddingsRequest(OpenBody):
    """Texts, or token ids, to embed."""

    model: Text | None = None
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Int | None = Field(None, ge=1, le=INT32_MAX)
