"""Numbers of an answer: tokens, milliseconds, probabilities, and what has gone short."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from elastikv.engine.outputs import Delta, GenerationOutput, Timings
from elastikv.server.generation import Step


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


def timings(parts: Sequence[Timings]) -> dict[str, float]:
    """llama-server's ``timings``: tokens and milliseconds of prompt and generation, summed over the choices."""
    prompt_n = sum(part.prompt_n for part in parts)
    draft_n = sum(part.draft_n for part in parts)
    draft_n_accepted = sum(part.draft_n_accepted for part in parts)
    n_steps = sum(max(part.predicted_n - 1, 0) for part in parts)  # the first token comes of the prompt
    return {
        "cache_n": sum(part.cached_n for part in parts),
        "prompt_n": prompt_n,
        **_speed("prompt", prompt_n, sum(part.prompt_seconds for part in parts)),
        "predicted_n": sum(part.predicted_n for part in parts),
        **_speed("predicted", n_steps, sum(part.predicted_seconds for part in parts)),
        **({"draft_n": draft_n, "draft_n_accepted": draft_n_accepted} if draft_n else {}),
    }


def _speed(name: str, n_tokens: int, seconds: float) -> dict[str, float]:
    return {
        f"{name}_ms": seconds * 1e3,
        f"{name}_per_token_ms": seconds * 1e3 / n_tokens if n_tokens else 0.0,
        f"{name}_per_second": n_tokens / seconds if seconds else 0.0,
    }


def news_of_figures(delta: Delta, *, with_timings: bool | None) -> dict[str, Any]:
    """``prompt_progress`` where there is some, and ``timings`` where they are wanted with every token."""
    told: dict[str, Any] = {}
    if delta.progress is not None:
        progress = delta.progress
        told["prompt_progress"] = {
            "total": progress.total,
            "cache": progress.cached,
            "processed": progress.processed,
            "time_ms": progress.seconds * 1e3,
        }
    if with_timings and delta.timings is not None:
        told["timings"] = timings([delta.timings])
    return told


def warnings_of(steps: Sequence[Step]) -> dict[str, str]:
    """``{"warning": ...}`` if the memory ended a generation early, else nothing."""
    found = [step.warning for step in steps if step.warning]
    return {"warning": found[0]} if found else {}


def json_logprob(logprob: float) -> float:
    """JSON knows no infinity; OpenAI writes -9999 for a token that cannot come."""
    return max(logprob, -9999.0)
