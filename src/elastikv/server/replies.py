"""What answers of chat and text completions have in common, and how they are sent."""

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
from elastikv.server.errors import APIError, a_mistake, from_elastikv
from elastikv.server.figures import news_of_figures, timings, usage, warnings_of
from elastikv.server.generation import Job, Step, collect, generate
from elastikv.server.llama_words import final
from elastikv.server.schemas import GenerationRequest
from elastikv.server.state import ModelState
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

    def __init__(self, state: ModelState, body: GenerationRequest, jobs: Sequence[Job]) -> None:
        info = state.ready_engine().llm.model.info
        self.n_choices = body.n_choices
        self._state = state
        self._body = body
        self._jobs = jobs
        self._id = self.id_prefix + uuid.uuid4().hex
        self._created = int(time.time())
        self._model = state.model_name
        self._fingerprint = f"elastikv-{version('elastikv')}-{info.fingerprint[:8]}"

    @abstractmethod
    def empty(self, index: int) -> dict[str, Any]:
        """A streamed choice that says nothing yet."""

    @abstractmethod
    def opening(self, index: int) -> dict[str, Any] | None:
        """A choice to announce ahead of the first piece of choice ``index``."""

    @abstractmethod
    def piece(self, step: Step) -> dict[str, Any] | None:
        """The choice of one streamed chunk; None where there is nothing to say."""

    @abstractmethod
    def closing(self, step: Step) -> dict[str, Any]:
        """The choice of the last chunk, which says why it is over."""

    @abstractmethod
    def choice(self, index: int, output: GenerationOutput) -> dict[str, Any]:
        """A choice of a whole answer."""

    def whole(self, last_steps: Sequence[Step]) -> dict[str, Any]:
        """The answer that is not streamed, of the last step of each job."""
        outputs = [step.output for step in last_steps if step.output is not None]
        choices = [self.choice(step.index, output) for step, output in zip(last_steps, outputs, strict=True)]
        answer = self.envelope(self.whole_object, choices, usage=usage(outputs, self.n_choices))
        return answer | _timings_of(outputs) | self._verbose(last_steps[0]) | warnings_of(last_steps)

    async def events(self, steps: AsyncIterator[Step]) -> AsyncGenerator[bytes, None]:
        """Chunks of all choices."""
        is_begun, opened = False, set()
        finished: dict[int, GenerationOutput] = {}
        includes_usage, with_timings = self._body.includes_usage, self._body.timings_per_token
        # With include_usage OpenAI gives every other chunk a usage of null.
        no_usage = {"usage": None} if includes_usage else {}
        try:
            async for step in steps:
                is_begun, told = True, news_of_figures(step.delta, with_timings=with_timings)
                if step.delta.progress is not None:
                    yield self.chunk([self.empty(step.index)], **no_usage, **told)
                    continue
                slot = {} if step.delta.session is None else {"id_slot": step.delta.session}
                opening = None if step.index in opened else self.opening(step.index)
                opened.add(step.index)
                if opening is not None:
                    yield self.chunk([opening], **no_usage)
                piece = self.piece(step)
                if piece is not None:
                    yield self.chunk([piece], **no_usage, **slot, **told)
                if step.output is not None:
                    finished[step.index] = step.output
                    last = _timings_of([step.output]) | self._verbose(step) | warnings_of([step])
                    yield self.chunk([self.closing(step)], **no_usage, **slot, **last)
        except Exception as error:  # the status has been sent: an event has to tell, whatever it was
            if not is_begun:
                raise
            yield event(midway_error(error).body)
            return
        if includes_usage:
            outputs = [finished[index] for index in sorted(finished)]
            yield self.chunk([], usage=usage(outputs, self.n_choices), **_timings_of(outputs))
        yield DONE

    def _verbose(self, step: Step) -> dict[str, Any]:
        """With ``verbose``, the prompt and the settings, in llama-server's words."""
        return {"__verbose": final(self._state, self._jobs[step.index], step)} if self._body.verbose else {}

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
    request: Request, state: ModelState, jobs: Sequence[Job], reply: Answer, *, stream: bool | None
) -> Response:
    """Run the jobs and send what they give, at once or as it comes."""
    steps = generate(state, jobs)
    if not stream:
        last_steps = await while_connected(request.receive, collect(steps, len(jobs)))
        return JSONResponse(reply.whole(last_steps))
    events = reply.events(steps)
    first = await while_connected(request.receive, anext(events))
    return EventStream(first, events)


def _timings_of(outputs: Sequence[GenerationOutput]) -> dict[str, Any]:
    return {"timings": timings([output.timings for output in outputs])}


def midway_error(error: Exception) -> APIError:
    """What is told of an error after the status has been sent, whatever it was."""
    if isinstance(error, ElastikvError):
        return from_elastikv(error)
    logger.error("a stream broke", exc_info=error)
    return a_mistake()
