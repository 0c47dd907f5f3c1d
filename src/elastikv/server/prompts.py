"""From what a request holds to token ids, and what is refused on the way."""

from __future__ import annotations

import asyncio
from typing import Any

from elastikv.errors import InvalidRequest
from elastikv.server.errors import APIError, not_supported
from elastikv.server.schemas import MAX_CHOICES, ChatMessage, ChatRequest, CompletionRequest, GenerationRequest
from elastikv.server.state import ServerState


def check_token_ids(token_ids: list[int], state: ServerState, param: str) -> None:
    """A 400 for ids that the vocabulary does not have."""
    n_vocab = state.ready_engine().llm.model.info.n_vocab
    wrong = next((token_id for token_id in token_ids if token_id >= n_vocab), None)
    if wrong is not None:
        raise APIError(400, f"token {wrong} is not in the vocabulary of {n_vocab}", param=param)


def check_common(body: GenerationRequest, state: ServerState) -> None:
    """What chat and text completions refuse alike."""
    if body.response_format is not None and body.response_format.type != "text":
        raise not_supported(
            "response_format", f"response_format {body.response_format.type!r} is not supported; only 'text' is"
        )
    if body.logit_bias:
        check_token_ids(list(body.logit_bias), state, "logit_bias")


def check_chat(body: ChatRequest, state: ServerState) -> None:
    check_common(body, state)
    if body.tools or body.functions:
        raise not_supported("tools" if body.tools else "functions", "tool calling is not supported; leave it out")
    if not state.ready_engine().llm.tokenizer.has_chat_template:
        raise APIError(400, "the model has no chat template; use /v1/completions", param="messages")


async def chat_prompt(body: ChatRequest, state: ServerState) -> list[int]:
    """The conversation as the model's template writes it, up to where the reply begins."""
    messages = [_plain_message(index, message) for index, message in enumerate(body.messages)]
    tokenizer = state.ready_engine().llm.tokenizer
    options = body.chat_template_kwargs or {}
    return await asyncio.to_thread(tokenizer.apply_chat_template, messages, **options)


def _plain_message(index: int, message: ChatMessage) -> dict[str, Any]:
    """Templates know no developers, and expect text rather than parts of it."""
    parts = message.content
    if isinstance(parts, list):
        other = next((part.type for part in parts if part.type != "text"), None)
        if other is not None:
            raise not_supported(
                f"messages.{index}.content", f"content of type {other!r} is not supported; only text is"
            )
        content = "".join(part.text or "" for part in parts)
    else:
        content = parts or ""
    plain = {"role": "system" if message.role == "developer" else message.role, "content": content}
    return plain | ({"name": message.name} if message.name else {})


def check_completion(body: CompletionRequest, state: ServerState) -> None:
    check_common(body, state)
    if body.suffix:
        raise not_supported("suffix", "filling in the middle is not supported; leave suffix out")
    if body.echo:
        raise not_supported("echo", "echo is not supported; the client has the prompt already")
    if body.best_of is not None and body.best_of != body.n_choices:
        raise not_supported("best_of", "best_of other than n is not supported")


async def completion_prompts(body: CompletionRequest, state: ServerState) -> list[list[int]]:
    """One list of token ids per prompt; ids are taken as they are, text gets the model's special tokens."""
    prompts: list[Any]
    if isinstance(body.prompt, str) or (body.prompt and isinstance(body.prompt[0], int)):
        prompts = [body.prompt]
    else:
        prompts = list(body.prompt)
    if not prompts or not all(prompts):
        raise APIError(400, "prompt: it must not be empty", param="prompt")
    if len(prompts) * body.n_choices > MAX_CHOICES:
        raise InvalidRequest(f"{len(prompts)} prompts with n={body.n_choices} are more than {MAX_CHOICES} generations")
    encode = state.ready_engine().llm.tokenizer.encode
    for prompt in prompts:
        if not isinstance(prompt, str):
            check_token_ids(prompt, state, "prompt")
    return [await asyncio.to_thread(encode, prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
