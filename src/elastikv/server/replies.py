"""What answers of chat and text completions have in common: numbers, logprobs, and how they are sent."""

from __future__ import annotations

import logging
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from importlib.metadata import version
from typing import Any, Protocol

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from elastikv.engine.outputs import GenerationOutput
from elastikv.errors import ElastikvError
from elastikv.server.errors import APIError, from_elastikv
from elastikv.server.generation import Job, Step, collect, generate
from elastikv.server.schemas import GenerationRequest
from elastikv.server.state import ServerState
from elastikv.server.streaming import DONE, EventStream, event, while_connected

logger = logging.getLogger(__name__)


class Answer(Protocol):
    """One answer in one protocol."""

    def whole(self, last_steps: Sequence[Step]) -> dict[str, Any]:
        """The answer that is not streamed, of the last step of each job."""
        ...

    def events(self, steps: AsyncIterator[Step]) -> AsyncGenerator[bytes, None]:
        """Server-sent events. An error before the first is raised; one after it can only be an event."""
        ...


class Reply(ABC):
    """OpenAI's completions: choices, whole or in pieces, and the envelope around them."""

    id_prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, state: ServerState, body: GenerationRequest) -> None:
        info = state.ready_engine().llm.model.info
        self.n_choices = body.n_choices
        self._includes_usage = body.includes_usage
        self._id = self.id_prefix + uuid.uuid4().hex
        self._created = int(time.time())
        self._model = state.model_name
        self._fingerprint = f"elastikv-{version('elastikv')}-{info.fingerprint[:8]}"

    @abstractmethod
    def opening(self, index: int) -> dict[str, Any] | None:
        """A choice to announce ahead of the first piece of choice ``index``."""

    @abstractmethod
    def piece(self, step: Step) -> dict[str, Any]:
        """The choice of one streamed chunk."""

    @abstractmethod
    def choice(self, index: int, output: GenerationOutput) -> dict[str, Any]:
        """A choice of a whole answer."""

    def whole(self, last_steps: Sequence[Step]) -> dict[str, Any]:
        """The answer that is not streamed, of the last step of each job."""
        outputs = [step.output for step in last_steps if step.output is not None]
        choices = [self.choice(step.index, output) for step, output in zip(last_steps, outputs, strict=True)]
        answer = self.envelope(
            self.whole_object, choices, usage=usage(outputs, self.n_choices), timings=timings(outputs)
        )
        return answer | warnings_of(last_steps)

    async def events(self, steps: AsyncIterator[Step]) -> AsyncGenerator[bytes, None]:
        """Chunks of all choices."""
        opened: set[int] = set()
        finished: dict[int, Step] = {}
        # With include_usage OpenAI gives every other chunk a usage of null.
        no_usage = {"usage": None} if self._includes_usage else {}
        try:
            async for step in steps:
                if step.index not in opened:
                    opened.add(step.index)
                    opening = self.opening(step.index)
                    if opening is not None:
                        yield self.chunk([opening], **no_usage)
                extra: dict[str, Any] = {} if step.delta.session is None else {"id_slot": step.delta.session}
                if step.output is not None:
                    finished[step.index] = step
                    extra |= {"timings": timings([step.output])} | warnings_of([step])
                yield self.chunk([self.piece(step)], **no_usage, **extra)
        except Exception as error:  # the status has been sent: an event has to tell, whatever it was
            if not opened:
                raise
            yield event(midway_error(error).body)
            return
        if self._includes_usage:
            outputs = [finished[index].output for index in sorted(finished)]
            yield self.chunk([], usage=usage([output for output in outputs if output is not None], self.n_choices))
        yield DONE

    def chunk(self, choices: list[dict[str, Any]], **members: Any) -> bytes:
        """One server-sent event with these choices."""
        return event(self.envelope(self.chunk_object, choices, **members))

    def envelope(self, kind: str, choices: list[dict[str, Any]], **members: Any) -> dict[str, Any]:
        """The object around choices: id, model, time; ``members`` are added."""
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": self._fingerprint,
            "choices": choices,
            **members,
        }


async def answer(
    request: Request, state: ServerState, jobs: Sequence[Job], reply: Answer, *, stream: bool | None
) -> Response:
    """Run the jobs and send what they give, at once or as it comes."""
    steps = generate(state, jobs)
    if not stream:
        last_steps = await while_connected(request.receive, collect(steps, len(jobs)))
        return JSONResponse(reply.whole(last_steps))
    events = reply.events(steps)
    first = await while_connected(request.receive, anext(events))
    return EventStream(first, events)


def midway_error(error: Exception) -> APIError:
    """What is told of an error after the status has been sent, whatever it was."""
    if isinstance(error, ElastikvError):
        return from_elastikv(error)
    logger.error("a stream broke", exc_info=error)
    return APIError(500, "the server made a mistake; its log has more", type="server_error")


def usage(outputs: Sequence[GenerationOutput], n_choices: int) -> dict[str, Any]:
    """Prompts count once, however many choices they have; cached are the tokens that were not computed again."""
    firsts = outputs[::n_choices]
    n_prompt = sum(output.prompt_tokens for output in firsts)
    n_completion = sum(len(output.token_ids) for output in outputs)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_completion,
        "total_tokens": n_prompt + n_completion,
        "prompt_tokens_details": {"cached_tokens": sum(output.cached_tokens for output in firsts)},
    }


def timings(outputs: Sequence[GenerationOutput]) -> dict[str, float]:
    """llama-server's ``timings``: tokens and milliseconds of prompt and generation, summed over the choices."""
    prompt_n = sum(output.timings.prompt_n for output in outputs)
    predicted_n = sum(output.timings.predicted_n for output in outputs)
    prompt_seconds = sum(output.timings.prompt_seconds for output in outputs)
    predicted_seconds = sum(output.timings.predicted_seconds for output in outputs)
    draft_n = sum(output.timings.draft_n for output in outputs)
    draft_n_accepted = sum(output.timings.draft_n_accepted for output in outputs)
    return {
        "cache_n": sum(output.cached_tokens for output in outputs),
        **_speed("prompt", prompt_n, prompt_seconds),
        **_speed("predicted", predicted_n, predicted_seconds),
        **({"draft_n": draft_n, "draft_n_accepted": draft_n_accepted} if draft_n else {}),
    }


def _speed(name: str, n_tokens: int, seconds: float) -> dict[str, float]:
    return {
        f"{name}_n": n_tokens,
        f"{name}_ms": seconds * 1e3,
        f"{name}_per_token_ms": seconds * 1e3 / n_tokens if n_tokens else 0.0,
        f"{name}_per_second": n_tokens / seconds if seconds else 0.0,
    }


def warnings_of(steps: Sequence[Step]) -> dict[str, str]:
    """``{"warning": ...}`` if the memory ended a generation early, else nothing."""
    found = [step.warning for step in steps if step.warning]
    return {"warning": found[0]} if found else {}


def json_logprob(logprob: float) -> float:
    """JSON knows no infinity; OpenAI writes -9999 for a token that cannot come."""
    return max(logprob, -9999.0)
