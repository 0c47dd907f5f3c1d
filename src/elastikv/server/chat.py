"""A conversation, in whichever protocol it came, as jobs for the engine and as parts of the replies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from elastikv.engine.params import Reasoning, SamplingParams
from elastikv.server.chat_formats import THINK, CallFormat, call_format, thinks
from elastikv.server.chat_parser import MessageParser, Piece, response_template
from elastikv.server.chat_schemas import ChatRequest
from elastikv.server.errors import APIError
from elastikv.server.forms import form_params
from elastikv.server.generation import Job, make_jobs, sampling_params
from elastikv.server.prompts import chat_prompt, check_chat
from elastikv.server.state import ModelState
from elastikv.server.tools import check_tools, forced_calls, offered_tools
from elastikv.weights.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Chat:
    """What is to be computed, and how its text is to be read."""

    jobs: list[Job]
    template: Mapping[str, Any] | None
    prefix: str
    head: str | None
    tools: list[dict[str, Any]]
    hides_thoughts: bool

    def parser(self) -> MessageParser:
        """For one reply."""
        hides = self.hides_thoughts
        return MessageParser(self.template, self.prefix, head=self.head, tools=self.tools, hides_thoughts=hides)


async def make_chat(body: ChatRequest, state: ModelState) -> Chat:
    """Check a request and write its prompt. Raises APIError, InvalidRequest."""
    check_chat(body, state)
    check_tools(body)
    tokenizer = state.ready_engine().llm.tokenizer
    form = forced_calls(body, tokenizer, form_params(body))
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    params = sampling_params(state.settings.sampling, body, logprobs=logprobs, form=form)
    prompt = await chat_prompt(body, state)
    token_ids = await asyncio.to_thread(tokenizer.encode, prompt, add_special=False)
    tools = offered_tools(body)
    family = call_format(tokenizer.chat_template or "") if tools else None
    template, prefix = _reading(tokenizer, family, prompt, splits=body.reasoning_format != "none")
    params = replace(params, reasoning=_reasoning(body, tokenizer, prompt))
    if template is not None:
        # What a parser looks for may be special tokens.
        params = replace(params, skip_special_tokens=False, stop=_stops(body, params, family))
    head = family.head if family is not None and tokenizer.response_template is None else None
    jobs = make_jobs([token_ids], params, body.n_choices)
    return Chat(jobs, template, prefix, head, tools, hides_thoughts=body.include_reasoning is False)


def _stops(body: ChatRequest, params: SamplingParams, family: CallFormat | None) -> Sequence[str]:
    """A model that is to make one call at most ends with it."""
    if family is None or family.end is None or body.parallel_tool_calls is not False:
        return params.stops
    return (*params.stops, family.end)


def _reasoning(body: ChatRequest, tokenizer: Tokenizer, prompt: str) -> Reasoning | None:
    """What the engine has to know of thoughts: their bound, and that a form begins after them."""
    is_over = prompt.rstrip().endswith(THINK[1])  # the template has closed them, for there are to be none
    if not thinks(tokenizer.chat_template or "") or is_over:
        return None
    return Reasoning(start=THINK[0], end=THINK[1], is_open=_is_open(prompt), budget=body.thinking_budget)


def _reading(
    tokenizer: Tokenizer, family: CallFormat | None, prompt: str, *, splits: bool
) -> tuple[Mapping[str, Any] | None, str]:
    """What the parser looks for, and what it has to know of the prompt. splits: thoughts from content."""
    own = tokenizer.response_template
    if own is not None and splits:
        return own, prompt
    if own is not None:
        fields = {name: field for name, field in own["fields"].items() if name in ("content", "tool_calls")}
        return {**own, "fields": fields}, prompt
    has_thoughts = splits and thinks(tokenizer.chat_template or "")
    return response_template(family, thinks=has_thoughts), THINK[0] if has_thoughts and _is_open(prompt) else ""


def _is_open(prompt: str) -> bool:
    return prompt.rstrip().endswith(THINK[0])


def message(pieces: Iterable[Piece]) -> dict[str, Any]:
    """``reasoning_content``, ``content`` and ``tool_calls`` of pieces, as OpenAI's deltas have them; what there is."""
    found: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        if piece.kind == "call":
            call = calls.setdefault(piece.call, {"index": piece.call, "function": {"arguments": ""}})
            if piece.name is not None:
                call |= {"id": piece.call_id, "type": "function"}
                call["function"] = {"name": piece.name, **call["function"]}
            call["function"]["arguments"] += piece.text
        else:
            name = "content" if piece.kind == "content" else "reasoning_content"
            found[name] = found.get(name, "") + piece.text
    return found | ({"tool_calls": list(calls.values())} if calls else {})


@dataclass(slots=True)
class Block:
    """A part of a reply: thoughts, content, or one call. ``text`` is all of it that there is so far."""

    index: int
    first: Piece
    text: str = ""


class Blocks:
    """The pieces of a reply as blocks that open, grow and close, one after the other: what newer protocols stream."""

    def __init__(self) -> None:
        self.found: list[Block] = []
        self._is_open = False

    def feed(self, pieces: Iterable[Piece], *, is_last: bool = False) -> Iterator[tuple[str, Block, str]]:
        """``("open" | "delta" | "close", block, news)``."""
        for piece in pieces:
            block = self.found[-1] if self._is_open else None
            if block is None or (block.first.kind, block.first.call) != (piece.kind, piece.call):
                yield from self._close()
                block = Block(len(self.found), piece)
                self.found.append(block)
                self._is_open = True
                yield "open", block, ""
            block.text += piece.text
            if piece.text:
                yield "delta", block, piece.text
        if is_last:
            yield from self._close()

    def _close(self) -> Iterator[tuple[str, Block, str]]:
        if self._is_open:
            self._is_open = False
            yield "close", self.found[-1], ""


def chat_request(members: Mapping[str, Any]) -> ChatRequest:
    """A request of another protocol in OpenAI's words. Raises APIError (400)."""
    try:
        return ChatRequest.model_validate({name: value for name, value in members.items() if value is not None})
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise APIError(400, f"{place}: {problem['msg']}".removeprefix(": "), param=place or None) from error


def not_offered(kinds: Iterable[str]) -> dict[str, str]:
    """A ``warning`` about tools that only another server could run."""
    names = sorted(set(kinds))
    return {"warning": f"tools of these types are not offered to the model: {', '.join(names)}"} if names else {}
