"""llama-server's own ``POST /completion`` and ``POST /infill``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response

from elastikv.server.description import content, errors
from elastikv.server.errors import APIError
from elastikv.server.figures import news_of_figures
from elastikv.server.fim import fill_in_prompt
from elastikv.server.forms import form_params
from elastikv.server.generation import Job, Step, make_jobs, sampling_params
from elastikv.server.llama_schemas import InfillRequest, LlamaRequest
from elastikv.server.llama_words import final, probabilities
from elastikv.server.prompts import check_common, mixed_prompts
from elastikv.server.replies import answer, midway_error
from elastikv.server.state import ModelState, used_model
from elastikv.server.streaming import event

router = APIRouter()

State = Annotated[ModelState, Depends(used_model)]
Request_ = TypeVar("Request_", bound=LlamaRequest)


@router.post("/completions", response_model=None, include_in_schema=False)
@router.post("/completion", response_model=None, responses=errors(429) | content("text/event-stream"))
async def completion(body: LlamaRequest, request: Request, state: State) -> Response:
    """Text that follows a prompt, in llama-server's words."""
    body = _with_bias(body, state)
    check_common(body, state)
    prompts = await mixed_prompts(body.prompt, state, "prompt", n_choices=body.n_choices)
    return await _complete(body, request, state, prompts)


@router.post("/infill", response_model=None, responses=errors(429) | content("text/event-stream"))
async def infill(body: InfillRequest, request: Request, state: State) -> Response:
    """Text that stands between two others, of a model that was trained for it."""
    body = _with_bias(body, state)
    check_common(body, state)
    tokenizer = state.ready_engine().llm.tokenizer
    extra = body.input_extra or ()
    token_ids = await asyncio.to_thread(
        lambda: fill_in_prompt(
            tokenizer, body.input_prefix, body.input_suffix, extra=extra, begun=body.prompt, param="input_prefix"
        )
    )
    return await _complete(body, request, state, [token_ids])


def _with_bias(body: Request_, state: ModelState) -> Request_:
    """The same with ``logit_bias`` as OpenAI has it: a mapping of token ids to numbers."""
    given: Any = body.logit_bias or ()
    encode, biases = state.ready_engine().llm.tokenizer.encode, {}
    for token, bias in given.items() if isinstance(given, dict) else given:
        if not isinstance(token, int | str) or isinstance(bias, str):
            raise APIError(400, "logit_bias: give pairs of a token id, or a text, and a number", param="logit_bias")
        if isinstance(token, int):
            ids = [token]
        else:
            ids = [int(token)] if token.isdecimal() else encode(token, add_special=False)
        biases.update(dict.fromkeys(ids, -100.0 if bias is False else bias))
    return body.model_copy(update={"logit_bias": biases or None})


async def _complete(body: LlamaRequest, request: Request, state: ModelState, prompts: Sequence[list[int]]) -> Response:
    params = sampling_params(state.settings.sampling, body, logprobs=body.n_probs or None, form=form_params(body))
    jobs = make_jobs(prompts, params, body.n_choices)
    return await answer(request, state, jobs, LlamaReply(state, body, jobs), stream=body.stream)


class LlamaReply:
    """One object for each prompt and choice; a list of them where there are several."""

    def __init__(self, state: ModelState, body: LlamaRequest, jobs: Sequence[Job]) -> None:
        self._state = state
        self._body = body
        self._jobs = jobs

    def whole(self, last_steps: Sequence[Step]) -> Any:
        """What is not streamed."""
        found = []
        for step in last_steps:
            members = final(self._state, self._jobs[step.index], step)
            found.append(self._selected(members if self._body.return_tokens else {**members, "tokens": []}))
        return found[0] if len(found) == 1 else found

    async def events(self, steps: AsyncIterator[Step]) -> AsyncGenerator[bytes, None]:
        """One event for what is new, and one at the end of each."""
        n_predicted: dict[int, int] = {}
        try:
            async for step in steps:
                delta, job = step.delta, self._jobs[step.index]
                n = n_predicted[step.index] = n_predicted.get(step.index, 0) + len(delta.token_ids)
                if delta.token_ids or delta.text or delta.progress is not None:
                    yield event(
                        {
                            "index": step.index,
                            "content": delta.text,
                            "tokens": delta.token_ids,
                            "stop": False,
                            "id_slot": -1,
                            "tokens_predicted": n,
                            "tokens_evaluated": len(job.token_ids),
                            **news_of_figures(delta, with_timings=self._body.timings_per_token),
                            **probabilities(delta.logprobs, job.params),
                        }
                    )
                if step.output is not None:
                    last = {**final(self._state, job, step), "content": "", "tokens": []}
                    last.pop("completion_probabilities", None)
                    yield event(self._selected(last))
        except Exception as error:  # the status has been sent: an event has to tell, whatever it was
            if not n_predicted:
                raise
            yield event(midway_error(error).body)

    def _selected(self, members: dict[str, Any]) -> dict[str, Any]:
        """``response_fields``: names, with ``/`` between those of nested objects; what there is not is left out."""
        if not self._body.response_fields:
            return members
        selected = {}
        for path in self._body.response_fields:
            value: Any = members
            for name in path.split("/"):
                value = value.get(name) if isinstance(value, dict) else None
            if value is not None:
                selected[path] = value
        return selected
