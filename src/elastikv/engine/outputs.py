"""What a generation hands back: whole (``GenerationOutput``) and as it comes (``Delta``)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """A token that could have been chosen; ``text`` alone may be a broken piece of a character."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The chosen token with its natural-log probability, and the most likely ones."""

    token_id: int
    text: str
    logprob: float
    top: tuple[TopLogprob, ...] = ()


@dataclass(slots=True)
class Timings:
    """Tokens that were computed and the seconds it took; cached prompt tokens (``cached_n``) do not count.

    predicted_seconds: from the first token on, which comes of the prompt.
    draft_n: tokens that were drafted, and draft_n_accepted: how many of them were then chosen.
    """

    prompt_n: int = 0
    prompt_seconds: float = 0.0
    predicted_n: int = 0
    predicted_seconds: float = 0.0
    draft_n: int = 0
    draft_n_accepted: int = 0
    cached_n: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a prompt is computed: ``processed`` of ``total`` tokens, ``cached`` of which were held already."""

    total: int
    cached: int
    processed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class GenerationOutput:
    """One generation that has ended, early or not.

    finish_reason: ``"stop"`` end token or stop string, ``"length"`` max_tokens or n_ctx,
    ``"abort"`` ended by the caller, None: ended by an error.
    token_ids: all that were generated, those of a stop string and the end token included.
    cached_tokens: how many of the prompt's tokens were not computed again.
    stop: the stop string that has ended it, if one has.
    session_id: of the session that holds its cells now.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason | None
    prompt_tokens: int
    cached_tokens: int
    logprobs: list[TokenLogprobs] | None
    timings: Timings
    stop: str | None = None
    session_id: int | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """News of a generation: text that is certain, tokens and log probabilities as they come.

    ``text`` may lag behind ``token_ids``: broken characters and possible stop strings are held back.
    ``timings`` are those so far. ``output`` comes with the last delta. ``progress`` comes, without anything else but
    timings, while a prompt is computed whose ``SamplingParams`` ask for it. session: the id of the session that
    computes it.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    output: GenerationOutput | None = None
    timings: Timings | None = None
    progress: Progress | None = None
    session: int | None = None
