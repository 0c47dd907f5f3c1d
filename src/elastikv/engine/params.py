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

SAMPLERS = ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature")
"""All there are, by llama.cpp's names and in its order."""

_SHORT_NAMES = dict(zip("edskypmxt", SAMPLERS, strict=True))
_OTHER_NAMES = {"nucleus": "top_p", "temp": "temperature", "typ": "typ_p", "typical": "typ_p", "typicalp": "typ_p"}
_LONG_NAMES = {name.replace("_", ""): name for name in SAMPLERS} | _OTHER_NAMES

_MOST_BREAKERS, _LONGEST_BREAKER = 64, 40

_FORMS = ("json_schema", "grammar", "regex", "choice")

_WHOLE_NUMBERS = (
    ("top_k", 0, None, "0 keeps all tokens"),
    ("repeat_last_n", -1, None, "-1 looks at all tokens"),
    ("dry_allowed_length", 0, None, "repetitions up to this many tokens are free"),
    ("dry_penalty_last_n", -1, None, "-1 looks at all tokens, 0 switches DRY off"),
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

    logit_bias comes first; then what ``samplers`` names, in that order.

    temperature: 0 takes the most likely token of those that typical_p and xtc leave; the other cuts have no say then.
    top_k: keep the k most likely tokens (0: all).
    top_p: keep the fewest tokens whose probabilities add up to this (1: all).
    min_p: keep tokens at least this fraction as likely as the most likely one (0: all).
    repeat_penalty: divides (multiplies, if negative) the logits of recent tokens (1: off).
    presence_penalty, frequency_penalty: subtracted once, or per occurrence, for recent tokens (0: off).
    repeat_last_n: how many tokens, prompt included, count as recent for the three penalties (-1: all).
    dry_multiplier, dry_base, dry_allowed_length: a token that would make a repetition of the last n tokens longer
        costs multiplier * base ** (n - allowed_length), from n = allowed_length on (multiplier 0: off).
    dry_penalty_last_n: how many tokens DRY looks for repetitions in (-1: all, 0: off).
    dry_sequence_breakers: texts that no repetition goes across, at most 64 of at most 40 characters.
    top_n_sigma: keep tokens whose logits are at most this many standard deviations below the largest (-1, 0: all).
    typical_p: keep the tokens nearest to the expected surprise, until their probabilities exceed this (1: all).
    xtc_probability: how often to leave out the most likely tokens, all but the least likely of those with at least
        xtc_threshold of the probability (0: never; a threshold above 0.5: never).
    samplers: names of ``SAMPLERS``, or llama.cpp's short string such as "kpmt"; what is not named is not applied.
    seed: makes the choices reproducible; None draws a fresh one.
    max_tokens: tokens to generate at most; 0 computes the prompt only; None: until the model stops or n_ctx is reached.
    stop: strings that end the text, and are not part of it.
    logprobs: report each token's log probability, and those of this many most likely tokens (None: off).
    post_sampling_probs: these are of what the samplers leave to draw from; False: of what the model says.
    return_progress: begin with news of how much of the prompt is computed (``Delta.progress``).
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
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: Sequence[str] = ("\n", ":", '"', "*")
    top_n_sigma: float = -1.0
    typical_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    samplers: Sequence[str] | str = SAMPLERS
    seed: int | None = None
    max_tokens: int | None = 256
    stop: str | Sequence[str] = ()
    logprobs: int | None = None
    post_sampling_probs: bool = False
    return_progress: bool = False
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
        for name in ("ignore_eos", "skip_special_tokens", "cache_prompt", "post_sampling_probs", "return_progress"):
            instance(name, getattr(self, name), bool, "True or False")
        self._check_ranges()
        for name, least, most, remedy in _WHOLE_NUMBERS:
            value = getattr(self, name)
            if value is not None or name not in ("seed", "max_tokens", "logprobs"):
                object.__setattr__(self, name, whole_number(name, value, least, most, remedy))
        if not all(isinstance(stop, str) and stop for stop in stops):
            raise InvalidRequest("stop must be non-empty strings; leave it out to stop at the end token only")
        object.__setattr__(self, "dry_sequence_breakers", _checked_breakers(self.dry_sequence_breakers))
        object.__setattr__(self, "samplers", _checked_samplers(self.samplers))
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

    def _check_ranges(self) -> None:
        _in_range("temperature", self.temperature, 0.0, math.inf, "0 is greedy")
        _in_range("top_p", self.top_p, 0.0, 1.0, "1 keeps all tokens", open_below=True)
        _in_range("min_p", self.min_p, 0.0, 1.0, "0 keeps all tokens")
        _in_range("typical_p", self.typical_p, 0.0, 1.0, "1 keeps all tokens", open_below=True)
        _in_range("top_n_sigma", self.top_n_sigma, -1.0, math.inf, "-1 keeps all tokens")
        _in_range("xtc_probability", self.xtc_probability, 0.0, 1.0, "0 switches it off")
        _in_range("xtc_threshold", self.xtc_threshold, 0.0, 1.0, "above 0.5 it switches XTC off")
        _in_range("dry_multiplier", self.dry_multiplier, 0.0, math.inf, "0 switches it off")
        _in_range("dry_base", self.dry_base, 1.0, math.inf, "1 makes all repetitions cost the same")
        _in_range("repeat_penalty", self.repeat_penalty, 0.0, math.inf, "1 switches it off", open_below=True)
        _in_range("presence_penalty", self.presence_penalty, -2.0, 2.0, "0 switches it off")
        _in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0, "0 switches it off")

    @property
    def uses_dry(self) -> bool:
        """Whether repetitions cost something, so that what breaks them has to be known."""
        return self.dry_multiplier > 0 and self.dry_penalty_last_n != 0 and "dry" in self.samplers

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


def _checked_breakers(breakers: Sequence[str]) -> tuple[str, ...]:
    instance("dry_sequence_breakers", breakers, Iterable, "a list of texts")
    texts = tuple(breakers)
    if isinstance(breakers, str) or not all(isinstance(text, str) and text for text in texts):
        raise InvalidRequest(f"dry_sequence_breakers must be a list of non-empty texts, got {breakers!r:.60}")
    if len(texts) > _MOST_BREAKERS or any(len(text) > _LONGEST_BREAKER for text in texts):
        bounds = f"at most {_MOST_BREAKERS} texts of at most {_LONGEST_BREAKER} characters"
        raise InvalidRequest(f"dry_sequence_breakers must be {bounds}; give fewer or shorter ones")
    return texts


def _checked_samplers(samplers: Sequence[str] | str) -> tuple[str, ...]:
    """Their names as ``SAMPLERS`` has them; each may be there more than once, or not at all."""
    instance("samplers", samplers, Iterable, "a list of names or a text")
    given: dict[str, str] = _SHORT_NAMES
    if not isinstance(samplers, str):
        samplers, given = [str(name) for name in samplers], _LONG_NAMES
        found = [given.get(name.lower().replace("_", "").replace("-", "")) for name in samplers]
    else:
        found = [given.get(letter) for letter in samplers]
    for asked, name in zip(samplers, found, strict=True):
        if name is None:
            known = ", ".join(f"{name} ({letter})" for letter, name in _SHORT_NAMES.items())
            raise InvalidRequest(f"samplers: {asked!r} is none of {known}")
    return tuple(name for name in found if name is not None)


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
