"""From a request to the engine and back: several generations run as one, and end together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from elastikv.engine.outputs import Delta, GenerationOutput
from elastikv.engine.params import SamplingParams
from elastikv.errors import GenerationCut, InvalidRequest
from elastikv.server.errors import APIError
from elastikv.server.schemas import GenerationRequest
from elastikv.server.state import ModelState

SAMPLING_SETTINGS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repeat_penalty",
    "repeat_last_n",
    "presence_penalty",
    "frequency_penalty",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_penalty_last_n",
    "dry_sequence_breakers",
    "top_n_sigma",
    "typical_p",
    "xtc_probability",
    "xtc_threshold",
    "samplers",
    "ignore_eos",
)
"""Those that llama-server tells by the names that ``SamplingParams`` has for them."""

_SAMPLING = (*SAMPLING_SETTINGS, "seed", "stop", "logit_bias", "cache_prompt", "post_sampling_probs")
"""Members of a request that ``SamplingParams`` has under the same name."""


@dataclass(frozen=True, slots=True)
class Job:
    """One generation. Several choices of one prompt share ``token_ids``."""

    token_ids: list[int]
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class Step:
    """What one job has new. The last step of a job has ``output``; ``warning`` says why it ended early."""

    index: int
    delta: Delta
    warning: str | None = None

    @property
    def output(self) -> GenerationOutput | None:
        """The whole generation, in the last step of its job."""
        return self.delta.output


def make_jobs(prompts: Sequence[list[int]], params: SamplingParams, n_choices: int) -> list[Job]:
    """Job ``p * n_choices + i`` is choice i of prompt p; with a seed, choice i draws from ``seed + i``."""
    choices = [
        params if params.seed is None else replace(params, seed=(params.seed + i) % 2**64) for i in range(n_choices)
    ]
    return [Job(prompt, choice) for prompt in prompts for choice in choices]


def sampling_params(
    defaults: SamplingParams, body: GenerationRequest, *, logprobs: int | None, form: Mapping[str, Any]
) -> SamplingParams:
    """The server's defaults where the request is silent. form: what ``SamplingParams`` needs for the text's form.

    Raises a 400 that names the parameter for values out of range.
    """
    given: dict[str, Any] = {name: getattr(body, name) for name in _SAMPLING if getattr(body, name, None) is not None}
    if given.get("seed") == -1:  # llama-server and vLLM draw one then
        given["seed"] = None
    for name, value in given.items():
        _check_alone(name, name, value)
    _check_alone("top_logprobs" if "top_logprobs" in body.model_fields_set else "logprobs", "logprobs", logprobs)
    if body.token_limit is not None and body.token_limit >= 0:
        given["max_tokens"] = body.token_limit
    shows_progress = bool(body.stream and body.return_progress)
    return replace(defaults, logprobs=logprobs, return_progress=shows_progress, **given, **form)


def _check_alone(param: str, name: str, value: Any) -> None:
    """What ``SamplingParams`` says of one value, with the name that the client knows it by."""
    try:
        SamplingParams(**{name: value})
    except InvalidRequest as error:
        raise APIError(400, str(error).replace(name, param, 1), param=param) from error


async def generate(state: ModelState, jobs: Sequence[Job]) -> AsyncIterator[Step]:
    """Steps of all jobs as they come. The first refusal ends all; closing the iterator aborts them."""
    arrived: asyncio.Queue[Step | BaseException] = asyncio.Queue()
    tasks = [asyncio.create_task(_run_job(state, index, job, arrived)) for index, job in enumerate(jobs)]
    try:
        n_running = len(tasks)
        while n_running:
            step = await arrived.get()
            if isinstance(step, BaseException):
                raise step
            n_running -= step.output is not None
            yield step
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _run_job(state: ModelState, index: int, job: Job, arrived: asyncio.Queue[Step | BaseException]) -> None:
    started = last = time.perf_counter()
    n_seen = 0
    try:
        async with aclosing(state.ready_engine().stream(job.token_ids, job.params)) as deltas:
            async for delta in deltas:
                now = time.perf_counter()
                if delta.token_ids:
                    state.metrics.observe_tokens(now - (last if n_seen else started), is_first=not n_seen)
                    n_seen, last = n_seen + len(delta.token_ids), now
                arrived.put_nowait(Step(index, delta))
    except GenerationCut as error:
        arrived.put_nowait(_cut_step(index, error))
    except Exception as error:  # carried to the reader of the queue, which raises it
        arrived.put_nowait(error)


def _cut_step(index: int, error: GenerationCut) -> Step:
    last = Delta(finish_reason="length", output=replace(error.output, finish_reason="length"))
    return Step(index, last, warning=str(error))


async def collect(steps: AsyncIterator[Step], n_jobs: int) -> list[Step]:
    """The last step of every job, which has its whole output, in the order of the jobs."""
    last: dict[int, Step] = {}
    async for step in steps:
        if step.output is not None:
            last[step.index] = step
    return [last[index] for index in range(n_jobs)]
