"""``POST /v1/chat/completions``."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from typing_extensions import override

from elastikv.engine.outputs import GenerationOutput, TokenLogprobs
from elastikv.server.chat import Chat, make_chat, message
from elastikv.server.chat_schemas import ChatRequest
from elastikv.server.description import content, errors
from elastikv.server.figures import json_logprob
from elastikv.server.generation import Step
from elastikv.server.replies import Reply, answer
from elastikv.server.state import ModelState, used_model

router = APIRouter()


@router.post("/chat/completions", response_model=None, include_in_schema=False)
@router.post("/v1/chat/completions", response_model=None, responses=errors(429) | content("text/event-stream"))
async def chat_completions(
    body: ChatRequest, request: Request, state: Annotated[ModelState, Depends(used_model)]
) -> Response:
    """A reply to a conversation, whole or as server-sent events."""
    chat = await make_chat(body, state)
    return await answer(request, state, chat.jobs, ChatReply(state, body, chat), stream=body.stream)


@router.post("/chat/completions/input_tokens", include_in_schema=False)
@router.post("/v1/chat/completions/input_tokens")
async def count_tokens(body: ChatRequest, state: Annotated[ModelState, Depends(used_model)]) -> dict[str, Any]:
    """How many tokens the prompt of a conversation has."""
    chat = await make_chat(body, state)
    return {"object": "chat.completion.input_tokens", "input_tokens": len(chat.jobs[0].token_ids)}


class ChatReply(Reply):
    """Chat completions: messages, or deltas of them."""

    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, state: ModelState, body: ChatRequest, chat: Chat) -> None:
        super().__init__(state, body, chat.jobs)
        self._parsers = [chat.parser() for _ in chat.jobs]
        self._has_called: set[int] = set()

    @override
    def empty(self, index: int) -> dict[str, Any]:
        return _choice(index, delta={"role": "assistant", "content": None}, logprobs=None, finish_reason=None)

    @override
    def opening(self, index: int) -> dict[str, Any]:
        return self.empty(index)

    @override
    def piece(self, step: Step) -> dict[str, Any] | None:
        delta, parser = step.delta, self._parsers[step.index]
        news = message(parser.read(delta.text, is_last=step.output is not None))
        if "tool_calls" in news:
            self._has_called.add(step.index)
        if not news and not delta.logprobs:
            return None
        return _choice(step.index, delta=news, logprobs=_logprobs(delta.logprobs), finish_reason=None)

    @override
    def closing(self, step: Step) -> dict[str, Any]:
        reason = self._finish_reason(step.index, step.delta.finish_reason)
        return _choice(step.index, delta={}, logprobs=None, finish_reason=reason)

    @override
    def choice(self, index: int, output: GenerationOutput) -> dict[str, Any]:
        parser = self._parsers[index]
        whole = message(parser.read(output.text, is_last=True))
        if "tool_calls" in whole:
            self._has_called.add(index)
        reason = self._finish_reason(index, output.finish_reason)
        for call in whole.get("tool_calls", ()):
            del call["index"]
        content = None if "tool_calls" in whole else ""
        whole = {"role": "assistant", "content": content, "refusal": None, **whole}
        return _choice(index, message=whole, logprobs=_logprobs(output.logprobs), finish_reason=reason)

    def _finish_reason(self, index: int, reason: str | None) -> str | None:
        return "tool_calls" if reason == "stop" and index in self._has_called else reason


def _choice(index: int, **members: Any) -> dict[str, Any]:
    return {"index": index, **members}


def _logprobs(tokens: list[TokenLogprobs] | None) -> dict[str, Any] | None:
    if tokens is None:
        return None
    content = [
        {
            **_token(token.text, token.logprob),
            "top_logprobs": [_token(other.text, other.logprob) for other in token.top],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _token(text: str, logprob: float) -> dict[str, Any]:
    # The bytes of half a character are lost in its text, so none are claimed.
    raw = None if "\ufffd" in text else list(text.encode())
    return {"token": text, "logprob": json_logprob(logprob), "bytes": raw}
