"""``POST /v1/completions``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from typing_extensions import override

from elastikv.engine.outputs import GenerationOutput, TokenLogprobs
from elastikv.server.description import content, errors
from elastikv.server.figures import json_logprob
from elastikv.server.forms import form_params
from elastikv.server.generation import Job, Step, make_jobs, sampling_params
from elastikv.server.prompts import check_completion, completion_prompts
from elastikv.server.replies import Reply, answer
from elastikv.server.schemas import CompletionRequest
from elastikv.server.state import ModelState, used_model

router = APIRouter()


@router.post("/v1/completions", response_model=None, responses=errors(429) | content("text/event-stream"))
async def completions(
    body: CompletionRequest, request: Request, state: Annotated[ModelState, Depends(used_model)]
) -> Response:
    """Text that follows one or several prompts, whole or as server-sent events."""
    check_completion(body, state)
    params = sampling_params(state.settings.sampling, body, logprobs=body.logprobs, form=form_params(body))
    jobs = make_jobs(await completion_prompts(body, state), params, body.n_choices)
    return await answer(request, state, jobs, CompletionReply(state, body, jobs), stream=body.stream)


class CompletionReply(Reply):
    """Text completions."""

    id_prefix = "cmpl-"
    whole_object = chunk_object = "text_completion"

    def __init__(self, state: ModelState, body: CompletionRequest, jobs: Sequence[Job]) -> None:
        super().__init__(state, body, jobs)
        self._tokenizer = state.ready_engine().llm.tokenizer
        self._echoes = bool(body.echo)
        self._offsets: defaultdict[int, int] = defaultdict(int)

    @override
    def empty(self, index: int) -> dict[str, Any]:
        return self._choice(index, "", None, None)

    @override
    def opening(self, index: int) -> dict[str, Any] | None:
        return self._choice(index, self._echo(index), None, None) if self._echoes else None

    @override
    def piece(self, step: Step) -> dict[str, Any] | None:
        delta = step.delta
        return self._choice(step.index, delta.text, delta.logprobs, None) if delta.text or delta.logprobs else None

    @override
    def closing(self, step: Step) -> dict[str, Any]:
        return self._choice(step.index, "", None, step.delta.finish_reason)

    @override
    def choice(self, index: int, output: GenerationOutput) -> dict[str, Any]:
        return self._choice(index, self._echo(index) + output.text, output.logprobs, output.finish_reason)

    def _echo(self, index: int) -> str:
        """The prompt, where the text is to begin with it."""
        return self._tokenizer.decode(self._jobs[index].token_ids) if self._echoes else ""

    def _choice(
        self, index: int, text: str, tokens: list[TokenLogprobs] | None, finish_reason: str | None
    ) -> dict[str, Any]:
        logprobs = None if tokens is None else self._logprobs(index, tokens)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, index: int, tokens: list[TokenLogprobs]) -> dict[str, Any]:
        """OpenAI's columns; ``text_offset`` counts the characters of the choice before each token."""
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [json_logprob(token.logprob) for token in tokens],
            "top_logprobs": [{other.text: json_logprob(other.logprob) for other in token.top} for token in tokens],
            "text_offset": offsets,
        }
