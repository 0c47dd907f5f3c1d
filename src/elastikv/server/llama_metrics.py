"""The same numbers by llama-server's names, for what watches one already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from elastikv.engine.stats import EngineStats

Number = tuple[str, str, float, str]
"""Kind, name, value, help."""


def llama_metrics(stats: EngineStats) -> str:
    """Prometheus text. By hand, for prometheus_client wants every counter to be called ``_total``."""
    return metrics_text("llamacpp", _numbers(stats))


def metrics_text(prefix: str, numbers: Iterable[Number]) -> str:
    """Prometheus text of numbers whose names begin with ``prefix:``."""
    lines = []
    for kind, name, value, text in numbers:
        lines += [f"# HELP {prefix}:{name} {text}", f"# TYPE {prefix}:{name} {kind}", f"{prefix}:{name} {value}"]
    return "\n".join(lines) + "\n"


def _numbers(stats: EngineStats) -> Iterator[Number]:
    totals = stats.totals
    yield "counter", "prompt_tokens_total", totals.tokens_prompt, "Prompt tokens computed"
    yield "counter", "prompt_tokens_cached_total", totals.tokens_cached, "Prompt tokens that were held already"
    yield "counter", "prompt_seconds_total", totals.prompt_seconds, "Seconds of generations before their first token"
    yield "counter", "tokens_predicted_total", totals.tokens_generated, "Tokens generated"
    yield "counter", "tokens_predicted_seconds_total", totals.generated_seconds, "Seconds from there to their last one"
    yield "counter", "n_decode_total", totals.n_steps, "Steps computed"
    yield "counter", "n_tokens_max", totals.longest, "Most tokens that a sequence has had"
    yield "counter", "spec_decode_num_drafts_total", totals.n_drafts, "Drafts of tokens that were guessed"
    yield "counter", "spec_decode_num_draft_tokens_total", totals.n_drafted, "Tokens that were guessed"
    yield "counter", "spec_decode_num_accepted_tokens_total", totals.n_accepted, "Guesses that came true"
    prompt_rate = _ratio(totals.tokens_prompt, totals.prompt_seconds)
    yield "gauge", "prompt_tokens_seconds", prompt_rate, "Prompt tokens per second since the start"
    generated_rate = _ratio(totals.tokens_generated, totals.generated_seconds)
    yield "gauge", "predicted_tokens_seconds", generated_rate, "Tokens generated per second since the start"
    yield "gauge", "requests_processing", stats.n_running, "Generations that run"
    yield "gauge", "requests_deferred", stats.n_waiting, "Generations in the queue"
    yield "gauge", "n_busy_slots_per_decode", _ratio(totals.n_replies, totals.n_steps), "Generations of a step"


def _ratio(amount: float, of: float) -> float:
    return amount / of if of else 0.0
