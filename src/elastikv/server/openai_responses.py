"""OpenAI's ``POST /v1/responses``, as Codex calls it. Nothing is kept: a client sends the whole conversation."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from elastikv.engine.outputs import GenerationOutput
from elastikv.server.chat import Block, Blocks, Chat, chat_request, make_chat, not_offered
from elastikv.server.description import content, errors
from elastikv.server.figures import news_of_figures, timings, warnings_of
from elastikv.server.generation import Step
from elastikv.server.replies import answer, midway_error
from elastikv.server.responses_schemas import ResponsesRequest
from elastikv.server.state import ModelState, used_model
from elastikv.server.streaming import named_event

router = APIRouter()

State = Annotated[ModelState, Depends(used_model)]


@router.post("/responses/input_tokens", include_in_schema=False)
@router.post("/v1/responses/input_tokens")
async def count_tokens(body: ResponsesRequest, state: State) -> dict[str, Any]:
    """How many tokens the prompt of a conversation has."""
    chat = await make_chat(chat_request(body.members()), state)
    return {"object": "response.input_tokens", "input_tokens": len(chat.jobs[0].token_ids)}


@router.post("/responses", response_model=None, include_in_schema=False)
@router.post("/v1/responses", response_model=None, responses=errors(429) | content("text/event-stream"))
async def responses(body: ResponsesRequest, request: Request, state: State) -> Response:
    """A reply to a conversation, as items of OpenAI's newer protocol."""
    chat = await make_chat(chat_request(body.members()), state)
    reply = ResponsesReply(state, body, chat, not_offered(body.not_offered))
    return await answer(request, state, chat.jobs, reply, stream=body.stream)


class ResponsesReply:
    """Output items, whole or as the events of a stream."""

    def __init__(self, state: ModelState, body: ResponsesRequest, chat: Chat, warning: dict[str, str]) -> None:
        self._id = f"resp_{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = state.model_name
        self._body = body
        self._parser = chat.parser()
        self._blocks = Blocks()
        self._item_ids: list[str] = []
        self._warning = warning
        self._n_events = 0
        self._told: dict[str, Any] = {}
        self._tells_timings = bool((body.model_extra or {}).get("timings_per_token"))

    def whole(self, last_steps: Sequence[Step]) -> dict[str, Any]:
        """The answer that is not streamed."""
        (step,) = last_steps
        output = step.output
        assert output is not None
        list(self._blocks.feed(self._parser.read(output.text, is_last=True)))
        return {**self._response(output), **warnings_of(last_steps)}

    async def events(self, steps: AsyncIterator[Step]) -> AsyncGenerator[bytes, None]:
        """``response.created``, items, ``response.completed``."""
        is_begun = False
        try:
            async for step in steps:
                if not is_begun:
                    is_begun = True
                    yield self._event("response.created", response=self._response(None))
                    yield self._event("response.in_progress", response=self._response(None))
                self._told = news_of_figures(step.delta, with_timings=self._tells_timings)
                if step.delta.progress is not None:
                    yield self._event("response.in_progress", response=self._response(None))
                    continue
                is_last = step.output is not None
                pieces = self._parser.read(step.delta.text, is_last=is_last)
                for what, block, news in self._blocks.feed(pieces, is_last=is_last):
                    for event in self._of_block(what, block, news):
                        yield event
                if step.output is not None:
                    self._told = {"timings": timings([step.output.timings])}
                    response = {**self._response(step.output), **warnings_of([step])}
                    yield self._event(f"response.{response['status']}", response=response)
        except Exception as error:  # the status has been sent: an event has to tell, whatever it was
            if not is_begun:
                raise
            told = midway_error(error).body["error"]
            yield self._event("error", code=told["code"], message=told["message"], param=told["param"])

    def _event(self, kind: str, **members: Any) -> bytes:
        self._n_events += 1
        return named_event({"type": kind, "sequence_number": self._n_events - 1, **members, **self._told})

    def _of_block(self, what: str, block: Block, news: str) -> Iterator[bytes]:
        place: dict[str, Any] = {"item_id": self._item_id(block), "output_index": block.index}
        kind = block.first.kind
        more: dict[str, Any] = {"logprobs": []} if kind == "content" else {}
        name = {"content": "output_text", "reasoning": "reasoning_text", "call": "function_call_arguments"}[kind]
        if kind != "call":
            place["content_index"] = 0
        if what == "open":
            empty = Block(block.index, block.first)
            item = self._item(empty, "in_progress") | ({} if kind == "call" else {"content": []})
            yield self._event("response.output_item.added", output_index=block.index, item=item)
            if kind != "call":
                yield self._event("response.content_part.added", **place, part=_part(empty))
        elif what == "delta":
            yield self._event(f"response.{name}.delta", **place, delta=news, **more)
        else:
            if kind == "call":
                yield self._event(f"response.{name}.done", **place, name=block.first.name, arguments=block.text)
            else:
                yield self._event(f"response.{name}.done", **place, text=block.text, **more)
                yield self._event("response.content_part.done", **place, part=_part(block))
            item = self._item(block, "completed")
            yield self._event("response.output_item.done", output_index=block.index, item=item)

    def _item_id(self, block: Block) -> str:
        """The same one in all events about an item."""
        if block.index == len(self._item_ids):
            prefix = {"content": "msg", "reasoning": "rs", "call": "fc"}[block.first.kind]
            self._item_ids.append(f"{prefix}_{uuid.uuid4().hex}")
        return self._item_ids[block.index]

    def _item(self, block: Block, status: str) -> dict[str, Any]:
        common = {"id": self._item_id(block), "status": status}
        if block.first.kind == "content":
            return {**common, "type": "message", "role": "assistant", "content": [_part(block)]}
        if block.first.kind == "reasoning":
            return {**common, "type": "reasoning", "summary": [], "content": [_part(block)]}
        call = {"call_id": block.first.call_id, "name": block.first.name, "arguments": block.text}
        return {**common, "type": "function_call", **call}

    def _response(self, output: GenerationOutput | None) -> dict[str, Any]:
        """The response so far; with ``output``, at its end."""
        body, is_cut = self._body, output is not None and output.finish_reason == "length"
        status = "in_progress" if output is None else "incomplete" if is_cut else "completed"
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": None if output is None else int(time.time()),
            "status": status,
            "model": self._model,
            "output": [self._item(block, "completed") for block in self._blocks.found] if output else [],
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "text": {"format": {"type": "text"}} if body.text is None else body.text.model_dump(by_alias=True),
            "tool_choice": "auto" if body.tool_choice is None else _dumped(body.tool_choice),
            "tools": [tool.model_dump() for tool in body.tools or ()],
            "metadata": {},
            "usage": None if output is None else _usage(output),
            **self._warning,
        }


def _dumped(choice: Any) -> Any:
    return choice if isinstance(choice, str) else choice.model_dump()


def _part(block: Block) -> dict[str, Any]:
    if block.first.kind == "reasoning":
        return {"type": "reasoning_text", "text": block.text}
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": []}


def _usage(output: GenerationOutput) -> dict[str, Any]:
    n_output = len(output.token_ids)
    return {
        "input_tokens": output.prompt_tokens,
        "input_tokens_details": {"cached_tokens": output.cached_tokens},
        "output_tokens": n_output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": output.prompt_tokens + n_output,
    }
