"""A generation that has ended, in llama-server's words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from elastikv.engine.outputs import GenerationOutput, TokenLogprobs
from elastikv.engine.params import SamplingParams
from elastikv.server.figures import json_logprob, timings, warnings_of
from elastikv.server.generation import SAMPLING_SETTINGS, Job, Step
from elastikv.server.state import ModelState


def final(state: ModelState, job: Job, step: Step) -> dict[str, Any]:
    """What llama-server says at the end. ``id_slot``: the session, by the number that ``/slots`` has for it."""
    llm, output = state.ready_engine().llm, step.output
    assert output is not None
    n_tokens = output.prompt_tokens + len(output.token_ids)
    is_full = output.finish_reason == "length" and n_tokens >= llm.n_ctx
    return {
        "index": step.index,
        "content": output.text,
        "tokens": output.token_ids,
        "id_slot": -1 if output.session_id is None else output.session_id,
        "stop": True,
        "model": state.model_name,
        "tokens_predicted": len(output.token_ids),
        "tokens_evaluated": output.prompt_tokens,
        "generation_settings": _generation_settings(job.params, llm.n_ctx, llm.scheduler.eos_token_ids),
        "prompt": llm.tokenizer.decode(job.token_ids, skip_special=False),
        "has_new_line": "\n" in output.text,
        "truncated": is_full or step.warning is not None,
        "stop_type": _stop_type(output),
        "stopping_word": output.stop or "",
        "tokens_cached": n_tokens,
        "timings": timings([output.timings]),
        **probabilities(output.logprobs, job.params),
        **warnings_of([step]),
    }


def _stop_type(output: GenerationOutput) -> str:
    if output.stop is not None:
        return "word"
    return {"stop": "eos", "length": "limit"}.get(output.finish_reason or "", "none")


def probabilities(tokens: Sequence[TokenLogprobs] | None, params: SamplingParams) -> dict[str, Any]:
    """``completion_probabilities``: logarithms of the model's, or what the samplers have made of them."""
    if tokens is None:
        return {}
    is_post = params.post_sampling_probs

    def member(token_id: int, text: str, logprob: float) -> dict[str, Any]:
        number = {"prob": math.exp(logprob)} if is_post else {"logprob": json_logprob(logprob)}
        return {"id": token_id, "token": text, "bytes": list(text.encode()), **number}

    tops = "top_probs" if is_post else "top_logprobs"
    return {
        "completion_probabilities": [
            {
                **member(token.token_id, token.text, token.logprob),
                tops: [member(other.token_id, other.text, other.logprob) for other in token.top],
            }
            for token in tokens
        ]
    }


def _generation_settings(params: SamplingParams, n_ctx: int, eos_token_ids: Sequence[int]) -> dict[str, Any]:
    """The settings of a generation by llama-server's names; a bias of null is minus infinity."""
    biases: dict[int, float | None] = dict(params.logit_bias or {})
    if params.ignore_eos:
        biases |= dict.fromkeys(eos_token_ids)
    n_predict = -1 if params.max_tokens is None else params.max_tokens
    return {
        **{name: getattr(params, name) for name in SAMPLING_SETTINGS},
        "n_ctx": n_ctx,
        "n_predict": n_predict,
        "max_tokens": n_predict,
        "seed": -1 if params.seed is None else params.seed,
        "stop": list(params.stops),
        "n_probs": params.logprobs or 0,
        "post_sampling_probs": params.post_sampling_probs,
        "logit_bias": [{"token": token_id, "bias": bias} for token_id, bias in biases.items()],
        "grammar": params.grammar or "",
        # What is refused unless it is off.
        "mirostat": 0,
        "dynatemp_range": 0.0,
        "adaptive_target": -1.0,
        "adaptive_decay": 0.9,
        "min_keep": 0,
    }
