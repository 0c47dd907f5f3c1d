"""A conversation, in whichever protocol it came, as jobs for the engine and as parts of the replies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from elastikv.engine.params import SamplingParams
from elastikv.server.chat_formats import THINK, CallFormat, call_format, thinks
from elastikv.server.chat_parser import MessageParser, Piece, response_template
from elastikv.server.forms import form_params
from elastikv.server.generation import Job, make_jobs, sampling_params
from elastikv.server.prompts import chat_prompt, check_chat
from elastikv.server.schemas import ChatRequest
from elastikv.server.state import ServerState
from elastikv.server.tools import check_tools, forced_calls, offered_tools
from elastikv.weights.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Chat:
    """What is to be computed, and how its text is to be read."""

    jobs: list[Job]
    template: Mapping[str, Any] | None
    prefix: str
    head: str | None
    tools: list[dict[str, Any]]

    def parser(self) -> MessageParser:
        """For one reply."""
        return MessageParser(self.template, self.prefix, head=self.head, tools=self.tools)


async def make_chat(body: ChatRequest, state: ServerState) -> Chat:
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
    template, prefix = _reading(tokenizer, family, prompt)
    if template is not None:
        # What a parser looks for may be special tokens.
        params = replace(params, skip_special_tokens=False, stop=_stops(body, params, family))
    head = family.head if family is not None and tokenizer.response_template is None else None
    return Chat(make_jobs([token_ids], params, body.n_choices), template, prefix, head, tools)


def _stops(body: ChatRequest, params: SamplingParams, family: CallFormat | None) -> Sequence[str]:
    """A model that is to make one call at most ends with it."""
    if family is None or family.end is None or body.parallel_tool_calls is not False:
        return params.stops
    return (*params.stops, family.end)


def _reading(tokenizer: Tokenizer, family: CallFormat | None, prompt: str) -> tuple[Mapping[str, Any] | None, str]:
    """What the parser looks for, and what it has to know of the prompt."""
    if tokenizer.response_template is not None:
        return tokenizer.response_template, prompt
    is_open = prompt.rstrip().endswith(THINK[0])
    return response_template(family, thinks=thinks(tokenizer.chat_template or "")), THINK[0] if is_open else ""


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
