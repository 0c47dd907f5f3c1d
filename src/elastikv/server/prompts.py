"""From what a request holds to token ids, and what is refused on the way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from elastikv.errors import InvalidRequest
from elastikv.server.chat_formats import THINK, knows_tools
from elastikv.server.chat_schemas import ChatMessage, ChatRequest, parsed_arguments
from elastikv.server.errors import APIError, not_supported
from elastikv.server.fim import fill_in_prompt
from elastikv.server.parameters import refuse_unserved
from elastikv.server.schemas import (
    MAX_CHOICES,
    CompletionRequest,
    ContentPrompt,
    GenerationRequest,
    JsonPrompt,
    Prompt,
    Prompts,
    TextPart,
)
from elastikv.server.state import ModelState
from elastikv.server.tools import as_text, offered_tools


def check_token_ids(token_ids: list[int], state: ModelState, param: str) -> None:
    """Raise APIError (400) for ids that the vocabulary does not have."""
    n_vocab = state.ready_engine().llm.model.info.n_vocab
    wrong = next((token_id for token_id in token_ids if token_id >= n_vocab), None)
    if wrong is not None:
        raise APIError(400, f"token {wrong} is not in the vocabulary of {n_vocab}", param=param)


def check_common(body: GenerationRequest, state: ModelState) -> None:
    """Refuse what neither chat nor text completions can be given: raises APIError."""
    refuse_unserved(body)
    if body.logit_bias:
        check_token_ids(list(body.logit_bias), state, "logit_bias")


def check_chat(body: ChatRequest, state: ModelState) -> None:
    """Refuse what a chat completion cannot be given: raises APIError."""
    check_common(body, state)
    if not state.ready_engine().llm.tokenizer.has_chat_template:
        raise APIError(400, "the model has no chat template; use /v1/completions", param="messages")
    if body.add_generation_prompt and body.continue_final_message:
        message = "continue_final_message: give it or add_generation_prompt, not both"
        raise APIError(400, message, param="continue_final_message")
    if body.add_generation_prompt is False and body.prefill is None:
        raise not_supported(
            "add_generation_prompt", "add_generation_prompt=false needs an assistant's message to continue"
        )


async def chat_prompt(body: ChatRequest, state: ModelState) -> str:
    """The conversation as the model's template writes it, up to where the reply begins or goes on."""
    prefill = body.prefill
    messages = body.messages if prefill is None else body.messages[:-1]
    try:
        prompt = await _rendered(body, state, template_messages(messages))
    except InvalidRequest:
        # A few templates (DeepSeek's) join the arguments of a call to a string instead of writing them as JSON.
        with_text = template_messages(messages, arguments_as_text=True)
        if with_text == template_messages(messages):
            raise
        prompt = await _rendered(body, state, with_text)
    return prompt if prefill is None else prompt + _begun(len(messages), prefill, prompt)


async def _rendered(body: ChatRequest, state: ModelState, messages: list[dict[str, Any]]) -> str:
    tokenizer = state.ready_engine().llm.tokenizer
    tools, options = offered_tools(body), body.template_options
    if body.add_generation_prompt is False and body.prefill is None:
        options["add_generation_prompt"] = False
    if knows_tools(tokenizer.chat_template):
        options |= {"tools": tools} if tools else {}
    else:
        messages = as_text(messages, tools)
    return await asyncio.to_thread(tokenizer.render_chat, messages, **options)


def _begun(index: int, prefill: ChatMessage, prompt: str) -> str:
    """What of the reply there is. An answer in the prompt ends the thoughts that the template has begun."""
    text, thoughts = _text(index, prefill), prefill.reasoning_content or prefill.reasoning or ""
    if prompt.rstrip().endswith(THINK[0]):
        return thoughts + (f"\n{THINK[1]}\n\n{text}" if text else "")
    return (f"{THINK[0]}\n{thoughts}\n{THINK[1]}\n\n" if thoughts else "") + text


def template_messages(messages: Sequence[ChatMessage], *, arguments_as_text: bool = False) -> list[dict[str, Any]]:
    """Messages as chat templates expect them.

    Every member that was given; text instead of parts of it; "system" for "developer"; the arguments of calls as
    objects, or as JSON.
    """
    return [_template_message(index, message, arguments_as_text) for index, message in enumerate(messages)]


def _template_message(index: int, message: ChatMessage, arguments_as_text: bool) -> dict[str, Any]:
    turn = message.model_dump(exclude_none=True)
    if turn.get("function_call"):
        raise not_supported(f"messages.{index}.function_call", "function_call is not supported; use tool_calls")
    turn["role"] = "system" if message.role == "developer" else message.role
    turn["content"] = _text(index, message)
    if "reasoning" in turn:  # as vLLM and OpenRouter call it
        turn.setdefault("reasoning_content", turn["reasoning"])
    for call in turn.get("tool_calls", ()):
        arguments = parsed_arguments(call["function"].get("arguments"))
        call["function"]["arguments"] = json.dumps(arguments, ensure_ascii=False) if arguments_as_text else arguments
    return turn


def _text(index: int, message: ChatMessage) -> str:
    """An empty text where there is none: templates print ``None`` otherwise."""
    parts = message.content
    return _joined(parts, f"messages.{index}.content") if isinstance(parts, list) else parts or ""


def _joined(parts: Sequence[TextPart], param: str) -> str:
    other = next((part.type for part in parts if part.type != "text"), None)
    if other is not None:
        raise not_supported(param, f"content of type {other!r} is not supported; only text is")
    return "".join(part.text or "" for part in parts)


def check_completion(body: CompletionRequest, state: ModelState) -> None:
    """Refuse what a text completion cannot be given: raises APIError."""
    check_common(body, state)
    if body.best_of is not None and body.best_of != body.n_choices:
        raise not_supported("best_of", "best_of other than n is not supported")
    if body.echo and body.logprobs is not None:
        raise not_supported("echo", "echo with logprobs is not supported: a prompt's own are not computed")


async def completion_prompts(body: CompletionRequest, state: ModelState) -> list[list[int]]:
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
    tokenizer = state.ready_engine().llm.tokenizer
    for prompt in prompts:
        if not isinstance(prompt, str):
            check_token_ids(prompt, state, "prompt")
    if body.suffix:
        texts = [prompt if isinstance(prompt, str) else tokenizer.decode(prompt) for prompt in prompts]
        return [fill_in_prompt(tokenizer, text, body.suffix, param="suffix") for text in texts]
    encode = tokenizer.encode
    return [await asyncio.to_thread(encode, prompt) if isinstance(prompt, str) else prompt for prompt in prompts]


async def mixed_prompts(given: Prompts, state: ModelState, param: str, *, n_choices: int = 1) -> list[list[int]]:
    """llama-server's prompts as token ids. Raises APIError (400) for ``param``."""
    parts = [_plain(part, param) for part in (given if isinstance(given, list) else [given])]
    is_one = any(isinstance(part, int) for part in parts)
    if is_one and any(isinstance(part, list) for part in parts):
        raise APIError(400, f"{param}: token ids and lists of them cannot be mixed", param=param)
    prompts = [parts] if is_one else [part if isinstance(part, list) else [part] for part in parts]
    if not prompts or not all(prompts) or [""] in prompts:
        raise APIError(400, f"{param}: it must not be empty", param=param)
    if len(prompts) * n_choices > MAX_CHOICES:
        raise InvalidRequest(f"{len(prompts)} prompts with n={n_choices} are more than {MAX_CHOICES} at once")
    encode = state.ready_engine().llm.tokenizer.encode
    encoded = []
    for prompt in prompts:
        check_token_ids([part for part in prompt if isinstance(part, int)], state, param)
        token_ids: list[int] = []
        for i, part in enumerate(prompt):
            token_ids += (
                [part] if isinstance(part, int) else await asyncio.to_thread(encode, str(part), add_special=i == 0)
            )
        encoded.append(token_ids)
    return encoded


def _plain(part: Prompt | int | list[str | int], param: str) -> Any:
    if isinstance(part, JsonPrompt):
        return part.prompt_string
    return _joined(part.content, param) if isinstance(part, ContentPrompt) else part
