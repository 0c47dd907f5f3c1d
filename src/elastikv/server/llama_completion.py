"""llama-server's own ``POST /completion`` and ``POST /infill``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request, Response

from elastikv.engine.outputs import GenerationOutput, TokenLogprobs
from elastikv.engine.params import SamplingParams
from elastikv.server.description import content, errors
from elastikv.server.errors import APIError
from elastikv.server.fim import fill_in_prompt
from elastikv.server.forms import form_params
from elastikv.server.generation import SAMPLING_SETTINGS, Job, Step, make_jobs, sampling_params
from elastikv.server.llama_schemas import InfillRequest, LlamaRequest
from elastikv.server.prompts import check_common, mixed_prompts
from elastikv.server.replies import answer, json_logprob, midway_error, timings, warnings_of
from elastikv.server.state import ServerState, ready_state
from elastikv.server.streaming import event

router = APIRouter()

State = Annotated[ServerState, Depends(ready_state)]
Request_ = TypeVar("Request_", bound=LlamaRequest)


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


def _with_bias(body: Request_, state: ServerState) -> Request_:
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


async def _complete(body: LlamaRequest, request: Request, state: ServerState, prompts: Sequence[list[int]]) -> Response:
    params = sampling_params(state.settings.sampling, body, logprobs=body.n_probs or None, form=form_params(body))
    jobs = make_jobs(prompts, params, body.n_choices)
    return await answer(request, state, jobs, LlamaReply(state, body, jobs), stream=body.stream)


class LlamaReply:
    """One object for each prompt and choice; a list of them where there are several."""

    def __init__(self, state: ServerState, body: LlamaRequest, jobs: Sequence[Job]) -> None:
        self._tokenizer = state.ready_engine().llm.tokenizer
        self._model = state.model_name
        self._n_ctx = state.ready_engine().llm.n_ctx
        self._fields = body.response_fields
        self._returns_tokens = bool(body.return_tokens)
        self._id_slot = -1 if body.id_slot is None else body.id_slot
        self._jobs = jobs

    def whole(self, last_steps: Sequence[Step]) -> Any:
        """What is not streamed."""
        found = []
        for step in last_steps:
            assert step.output is not None
            tokens = step.output.token_ids if self._returns_tokens else []
            members = {**self._last(step, step.output), "content": step.output.text, "tokens": tokens}
            found.append(self._selected(members))
        return found[0] if len(found) == 1 else found

    async def events(self, steps: AsyncIterator[Step]) -> AsyncGenerator[bytes, None]:
        """One event for what is new, and one at the end of each."""
        n_predicted: dict[int, int] = {}
        try:
            async for step in steps:
                n = n_predicted[step.index] = n_predicted.get(step.index, 0) + len(step.delta.token_ids)
                if step.delta.token_ids or step.delta.text:
                    yield event(
                        {
                            "index": step.index,
                            "content": step.delta.text,
                            "tokens": step.delta.token_ids,
                            "stop": False,
                            "id_slot": self._id_slot,
                            "tokens_predicted": n,
                            "tokens_evaluated": len(self._jobs[step.index].token_ids),
                            **_probabilities(step.delta.logprobs),
                        }
                    )
                if step.output is not None:
                    last = {**self._last(step, step.output), "content": "", "tokens": []}
                    last.pop("completion_probabilities", None)
                    yield event(self._selected(last))
        except Exception as error:  # the status has been sent: an event has to tell, whatever it was
            if not n_predicted:
                raise
            yield event(midway_error(error).body)

    def _last(self, step: Step, output: GenerationOutput) -> dict[str, Any]:
        job = self._jobs[step.index]
        return {
            "index": step.index,
            "content": "",
            "tokens": [],
            "id_slot": self._id_slot,
            "stop": True,
            "model": self._model,
            "tokens_predicted": len(output.token_ids),
            "tokens_evaluated": output.prompt_tokens,
            "generation_settings": generation_settings(job.params, self._n_ctx),
            "prompt": self._tokenizer.decode(job.token_ids, skip_special=False),
            "has_new_line": "\n" in output.text,
            "truncated": False,
            "stop_type": _stop_type(output),
            "stopping_word": output.stop or "",
            "tokens_cached": output.prompt_tokens + len(output.token_ids),
            "timings": timings([output]),
            **_probabilities(output.logprobs),
            **warnings_of([step]),
        }

    def _selected(self, members: dict[str, Any]) -> dict[str, Any]:
        """``response_fields``: names, with ``/`` between those of nested objects; what there is not is left out."""
        if not self._fields:
            return members
        selected = {}
        for path in self._fields:
            value: Any = members
            for name in path.split("/"):
                value = value.get(name) if isinstance(value, dict) else None
            if value is not None:
                selected[path] = value
        return selected


def _stop_type(output: GenerationOutput) -> str:
    if output.stop is not None:
        return "word"
    return {"stop": "eos", "length": "limit"}.get(output.finish_reason or "", "none")


def _probabilities(tokens: Sequence[TokenLogprobs] | None) -> dict[str, Any]:
    if tokens is None:
        return {}

    def member(token_id: int, text: str, logprob: float) -> dict[str, Any]:
        return {"id": token_id, "token": text, "bytes": list(text.encode()), "logprob": json_logprob(logprob)}

    return {
        "completion_probabilities": [
            {
                **member(token.token_id, token.text, token.logprob),
                "top_logprobs": [member(other.token_id, other.text, other.logprob) for other in token.top],
            }
            for token in tokens
        ]
    }


def generation_settings(params: SamplingParams, n_ctx: int) -> dict[str, Any]:
    """The settings of a generation by llama-server's names."""
    n_predict = -1 if params.max_tokens is None else params.max_tokens
    return {
        **{name: getattr(params, name) for name in SAMPLING_SETTINGS},
        "n_ctx": n_ctx,
        "n_predict": n_predict,
        "max_tokens": n_predict,
        "seed": -1 if params.seed is None else params.seed,
        "stop": list(params.stops),
        "n_probs": params.logprobs or 0,
        "logit_bias": [{"token": token_id, "bias": bias} for token_id, bias in (params.logit_bias or {}).items()],
        "grammar": params.grammar or "",
        # What is refused unless it is off.
        "mirostat": 0,
        "dynatemp_range": 0.0,
        "min_keep": 0,
    }
