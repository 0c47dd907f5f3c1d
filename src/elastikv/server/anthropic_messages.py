"""Anthropic's ``POST /v1/messages`` and ``/v1/messages/count_tokens``, as Claude Code calls them."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from elastikv.engine.outputs import GenerationOutput
from elastikv.server.anthropic_schemas import CountRequest, MessagesRequest
from elastikv.server.chat import Block, Blocks, Chat, chat_request, make_chat, not_offered
from elastikv.server.description import content, errors
from elastikv.server.figures import warnings_of
from elastikv.server.generation import Step
from elastikv.server.replies import answer, midway_error
from elastikv.server.state import ModelState, used_model
from elastikv.server.streaming import named_event

router = APIRouter()

State = Annotated[ModelState, Depends(used_model)]


@router.post("/v1/messages", response_model=None, responses=errors(429) | content("text/event-stream"))
async def messages(body: MessagesRequest, request: Request, state: State) -> Response:
    """A reply to a conversation, in Anthropic's words."""
    chat = await make_chat(chat_request(body.members()), state)
    reply = MessageReply(state, chat, not_offered(body.not_offered))
    return await answer(request, state, chat.jobs, reply, stream=body.stream)


@router.post("/v1/messages/count_tokens")
async def count_tokens(body: CountRequest, state: State) -> dict[str, int]:
    """How many tokens the prompt of a conversation has."""
    chat = await make_chat(chat_request(body.members()), state)
    return {"input_tokens": len(chat.jobs[0].token_ids)}


class MessageReply:
    """A message of blocks, whole or as the events of a stream."""

    def __init__(self, state: ModelState, chat: Chat, warning: dict[str, str]) -> None:
        self._id = f"msg_{uuid.uuid4().hex}"
        self._model = state.model_name
        (self._job,) = chat.jobs
        self._parser = chat.parser()
        self._blocks = Blocks()
        self._warning = warning

    def whole(self, last_steps: Sequence[Step]) -> dict[str, Any]:
        """The answer that is not streamed."""
        (step,) = last_steps
        output = step.output
        assert output is not None
        list(self._blocks.feed(self._parser.read(output.text, is_last=True)))
        found = [_block(block) for block in self._blocks.found]
        return {
            **self._message(found, _usage(output)),
            **self._ending(output),
            **self._warning,
            **warnings_of(last_steps),
        }

    async def events(self, steps: AsyncIterator[Step]) -> AsyncGenerator[bytes, None]:
        """``message_start``, blocks, ``message_delta``, ``message_stop``."""
        is_begun = False
        try:
            async for step in steps:
                if not is_begun:
                    is_begun = True
                    start = {**self._message([], self._first_usage(step)), "stop_reason": None, "stop_sequence": None}
                    yield named_event({"type": "message_start", "message": start, **self._warning})
                is_last = step.output is not None
                pieces = self._parser.read(step.delta.text, is_last=is_last)
                for what, block, news in self._blocks.feed(pieces, is_last=is_last):
                    yield named_event(_event(what, block, news))
                if step.output is not None:
                    ending = self._ending(step.output)
                    numbers = {"type": "message_delta", "delta": ending, "usage": _usage(step.output)}
                    yield named_event({**numbers, **warnings_of([step])})
                    yield named_event({"type": "message_stop"})
        except Exception as error:  # the status has been sent: an event has to tell, whatever it was
            if not is_begun:
                raise
            yield named_event(midway_error(error).anthropic_body)

    def _first_usage(self, step: Step) -> dict[str, int]:
        """What there is to say of tokens before any is generated."""
        timings = step.delta.timings
        return _numbers(len(self._job.token_ids), timings.cached_n if timings else 0, 0)

    def _message(self, found: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": found,
            "usage": usage,
        }

    def _ending(self, output: GenerationOutput) -> dict[str, Any]:
        has_called = any(block.first.kind == "call" for block in self._blocks.found)
        if output.finish_reason == "length":
            reason = "max_tokens"
        elif has_called:
            reason = "tool_use"
        else:
            reason = "end_turn" if output.stop is None else "stop_sequence"
        return {"stop_reason": reason, "stop_sequence": output.stop if reason == "stop_sequence" else None}


def _usage(output: GenerationOutput) -> dict[str, int]:
    return _numbers(output.prompt_tokens, output.cached_tokens, len(output.token_ids))


def _numbers(n_prompt: int, n_cached: int, n_generated: int) -> dict[str, int]:
    return {
        "input_tokens": n_prompt - n_cached,
        "output_tokens": n_generated,
        "cache_read_input_tokens": n_cached,
        "cache_creation_input_tokens": 0,
    }


def _block(block: Block) -> dict[str, Any]:
    """A block that is complete."""
    if block.first.kind == "reasoning":
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    if block.first.kind == "content":
        return {"type": "text", "text": block.text}
    return {"type": "tool_use", "id": block.first.call_id, "name": block.first.name, "input": _input(block.text)}


def _input(text: str) -> Any:
    """Arguments as the object that they are; of a call that was cut, there is none."""
    try:
        return json.loads(text or "{}")
    except ValueError:
        return {}


def _event(what: str, block: Block, news: str) -> dict[str, Any]:
    if what == "close":
        return {"type": "content_block_stop", "index": block.index}
    if what == "open":
        begun = _block(Block(block.index, block.first))
        return {"type": "content_block_start", "index": block.index, "content_block": begun}
    deltas = {
        "reasoning": {"type": "thinking_delta", "thinking": news},
        "content": {"type": "text_delta", "text": news},
        "call": {"type": "input_json_delta", "partial_json": news},
    }
    return {"type": "content_block_delta", "index": block.index, "delta": deltas[block.first.kind]}
