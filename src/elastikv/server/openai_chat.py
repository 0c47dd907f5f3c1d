"""``POST /v1/chat/completions``."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from typing_extensions import override

from elastikv.engine.outputs import GenerationOutput, TokenLogprobs
from elastikv.server.description import content, errors
from elastikv.server.generation import Step, make_jobs, sampling_params
from elastikv.server.prompts import chat_prompt, check_chat
from elastikv.server.replies import Reply, answer, json_logprob
from elastikv.server.schemas import ChatRequest
from elastikv.server.state import ServerState, ready_state

router = APIRouter()


@router.post("/v1/chat/completions", response_model=None, responses=errors(429) | content("text/event-stream"))
async def chat_completions(
    body: ChatRequest, request: Request, state: Annotated[ServerState, Depends(ready_state)]
) -> Response:
    """A reply to a conversation, whole or as server-sent events."""
    check_chat(body, state)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = sampling_params(state.settings.sampling, body, logprobs=logprobs)
    jobs = make_jobs([await chat_prompt(body, state)], params, body.n_choices)
    return await answer(request, state, body, jobs, ChatReply(state, body.n_choices))


class ChatReply(Reply):
    """Chat completions: messages, or deltas of them."""

    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    @override
    def opening(self, index: int) -> dict[str, Any]:
        return _choice(index, delta={"role": "assistant", "content": ""}, logprobs=None, finish_reason=None)

    @override
    def piece(self, step: Step) -> dict[str, Any]:
        delta = step.delta
        content = {"content": delta.text} if delta.text else {}
        return _choice(step.index, delta=content, logprobs=_logprobs(delta.logprobs), finish_reason=delta.finish_reason)

    @override
    def choice(self, index: int, output: GenerationOutput) -> dict[str, Any]:
        return _choice(
            index,
            message={"role": "assistant", "content": output.text, "refusal": None},
            logprobs=_logprobs(output.logprobs),
            finish_reason=output.finish_reason,
        )


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
