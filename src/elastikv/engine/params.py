"""What a caller may ask of one generation, checked before anything is computed."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elastikv.arguments import instance, whole_number
from elastikv.errors import InvalidRequest

MAX_LOGPROBS = 20

_FORMS = ("json_schema", "grammar", "regex", "choice")

_WHOLE_NUMBERS = (
    ("top_k", 0, None, "0 keeps all tokens"),
    ("repeat_last_n", -1, None, "-1 looks at all tokens"),
    ("seed", None, None, "None draws a fresh one"),
    ("max_tokens", 0, None, "None sets no bound"),
    ("logprobs", 0, MAX_LOGPROBS, "None switches them off"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoning:
    """How a model thinks before it answers. Raises InvalidRequest.

    start, end: what stands around its thoughts. is_open: the prompt has the start already.
    budget: tokens that the thoughts may take; then ``end`` follows whatever the model would say (None: no bound).
    """

    start: str = "<think>"
    end: str = "</think>"
    is_open: bool = False
    budget: int | None = None

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            if not getattr(self, name) or not isinstance(getattr(self, name), str):
                raise InvalidRequest(f"{name} must be a non-empty text, got {getattr(self, name)!r}")
        if self.budget is not None:
            whole_number("budget", self.budget, 0, None, "None sets no bound")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen and when to stop. Defaults are llama.cpp's; ``temperature=0`` is greedy.

    Applied in llama.cpp's order: logit_bias, penalties, top_k, top_p, min_p, temperature.

    temperature: 0 takes the most likely token; then the cuts below have no say.
    top_k: keep the k most likely tokens (0: all).
    top_p: keep the fewest tokens whose probabilities add up to this (1: all).
    min_p: keep tokens at least this fraction as likely as the most likely one (0: all).
    repeat_penalty: divides (multiplies, if negative) the logits of recent tokens (1: off).
    presence_penalty, frequency_penalty: subtracted once, or per occurrence, for recent tokens (0: off).
    repeat_last_n: how many tokens, prompt included, count as recent for the three penalties (-1: all).
    seed: makes the choices reproducible; None draws a fresh one.
    max_tokens: tokens to generate at most; 0 computes the prompt only; None: until the model stops or n_ctx is reached.
    stop: strings that end the text, and are not part of it.
    logprobs: report each token's log probability, and those of this many most likely tokens (None: off).
    logit_bias: added to the logits of these token ids, -100..100.
    ignore_eos: the model may not end the text.
    skip_special_tokens: leave special tokens out of the text.
    cache_prompt: begin with cells that earlier requests have computed; False computes the whole prompt.

    reasoning: how the model thinks, if it does; the form of a text, and its end by that form, are its answer's.

    At most one of these gives the text a form; tokens that would leave it cannot be chosen:
    json_schema: a JSON Schema, as a mapping or as JSON. grammar: in llama.cpp's GBNF, with a rule ``root`` (or, from
    ``%llguidance`` on, in llguidance's notation). regex: in the syntax of Rust's ``regex``, for the whole text.
    choice: texts of which it is one.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_last_n: int = 64
    seed: int | None = None
    max_tokens: int | None = 256
    stop: str | Sequence[str] = ()
    logprobs: int | None = None
    logit_bias: Mapping[int, float] | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    cache_prompt: bool = True
    reasoning: Reasoning | None = None
    json_schema: Mapping[str, Any] | bool | str | None = None
    grammar: str | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None

    def __post_init__(self) -> None:
        instance("stop", self.stop or (), (str, Iterable), "a text or a list of texts")
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        object.__setattr__(self, "stop", stops)
        for name in ("ignore_eos", "skip_special_tokens", "cache_prompt"):
            instance(name, getattr(self, name), bool, "True or False")
        _in_range("temperature", self.temperature, 0.0, math.inf, "0 is greedy")
        _in_range("top_p", self.top_p, 0.0, 1.0, "1 keeps all tokens", open_below=True)
        _in_range("min_p", self.min_p, 0.0, 1.0, "0 keeps all tokens")
        _in_range("repeat_penalty", self.repeat_penalty, 0.0, math.inf, "1 switches it off", open_below=True)
        _in_range("presence_penalty", self.presence_penalty, -2.0, 2.0, "0 switches it off")
        _in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0, "0 switches it off")
        for name, least, most, remedy in _WHOLE_NUMBERS:
            value = getattr(self, name)
            if value is not None or name in ("top_k", "repeat_last_n"):
                object.__setattr__(self, name, whole_number(name, value, least, most, remedy))
        if not all(isinstance(stop, str) and stop for stop in stops):
            raise InvalidRequest("stop must be non-empty strings; leave it out to stop at the end token only")
        if self.logit_bias is not None:
            object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))
        if self.choice is not None:
            object.__setattr__(self, "choice", _checked_choice(self.choice))
        if self.json_schema is not None:
            object.__setattr__(self, "json_schema", _checked_schema(self.json_schema))
        instance("reasoning", self.reasoning, (Reasoning, type(None)), "Reasoning")
        forms = [name for name in _FORMS if getattr(self, name) is not None]
        if len(forms) > 1:
            raise InvalidRequest(f"give only one of {', '.join(_FORMS)}; got {' and '.join(forms)}")
        for name in ("grammar", "regex"):
            instance(name, getattr(self, name), (str, type(None)), "a text")

    @property
    def form(self) -> tuple[str, str] | None:
        """The name of what gives the text its form, and that as a text; None where its form is free."""
        if self.json_schema is not None:
            return "json_schema", json.dumps(self.json_schema)
        if self.choice is not None:
            return "regex", "|".join(re.escape(text) for text in self.choice)
        if self.grammar is not None:
            return "grammar", self.grammar
        return None if self.regex is None else ("regex", self.regex)

    @property
    def stops(self) -> tuple[str, ...]:
        """``stop`` as the tuple that it was made into."""
        return tuple(self.stop)


def _checked_bias(biases: Mapping[int, float]) -> dict[int, float]:
    instance("logit_bias", biases, Mapping, "a mapping of token ids to numbers")
    checked = {}
    for token_id, bias in biases.items():
        _in_range(f"logit_bias[{token_id}]", bias, -100.0, 100.0, "-100 bans the token")
        checked[whole_number("a token id of logit_bias", token_id)] = bias
    return checked


def _checked_choice(choice: Sequence[str]) -> tuple[str, ...]:
    instance("choice", choice, Iterable, "a list of texts")
    texts = tuple(choice)
    if isinstance(choice, str) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise InvalidRequest(f"choice must be a list of non-empty texts, got {choice!r:.60}")
    return texts


def _checked_schema(schema: Mapping[str, Any] | bool | str) -> dict[str, Any]:
    """The schema as an object; JSON Schema's ``true`` is one that allows everything, and ``false`` allows nothing."""
    try:
        schema = json.loads(schema) if isinstance(schema, str) else json.loads(json.dumps(schema))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"json_schema must be a JSON Schema: {error}") from None
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise InvalidRequest(f"json_schema must be an object, got {schema!r:.60}")
    return schema


def _in_range(name: str, value: float, low: float, high: float, remedy: str, *, open_below: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidRequest(f"{name} must be a number, got {value!r}")
    good = low <= value <= high and not (open_below and value == low)
    # Comparisons with NaN are false, so NaN never passes; infinity only where nothing bounds from above.
    if not good or value > sys.float_info.max:
        above = "above" if open_below else "at least"
        bounds = f"{above} {low:g}" if math.isinf(high) else f"{above} {low:g} and at most {high:g}"
        raise InvalidRequest(f"{name} must be {bounds}, got {value}; {remedy}")
