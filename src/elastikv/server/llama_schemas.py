"""Bodies of llama-server's own routes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from elastikv.server.schemas import INT32_MAX, Body, GenerationRequest, Int, OpenBody, Prompts, Text, TokenId

Bias = float | Literal[False]
Biases = dict[Text, Bias] | list[Annotated[list[TokenId | Text | Bias], Field(min_length=2, max_length=2)]]


class LlamaRequest(GenerationRequest):
    """llama-server's ``/completion``.

    logit_bias: pairs as well as a mapping, of token ids or of texts, whose tokens are all meant; false bans.
    """

    prompt: Prompts
    logit_bias: Biases | None = None  # type: ignore[assignment]
    n_probs: Int | None = Field(None, ge=0, le=INT32_MAX)
    post_sampling_probs: bool | None = None
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


class EmbeddingRequest(OpenBody):
    """llama-server's; ``embd_normalize``: 2 for the Euclidean length, -1 for none."""

    content: Prompts | None = None
    input: Prompts | None = None
    embd_normalize: Literal[-1, 2] | None = None


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
