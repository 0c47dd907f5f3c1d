"""Text that has to follow a JSON schema, a grammar, a regular expression or one of some choices: llguidance's work.

ConstraintCompiler   of a model: what ``SamplingParams`` asks for becomes a ``Constraint``
Constraint           of a generation: which tokens may follow, and which must
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import llguidance
import numpy as np
import tokenizers
from llguidance.gbnf_to_lark import gbnf_to_lark

from elastikv.engine.params import SamplingParams
from elastikv.errors import InvalidRequest, one_line
from elastikv.weights.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_N_KEPT = 32
"""Compiled grammars: ``n`` choices, and clients that ask again and again for one form, have it compiled once."""

JSON_STYLE: JsonCompileOptions = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As ``json.dumps`` writes it. Free white space would let a model write nothing else, and force fewer tokens."""

_LARK = "%llguidance"
"""What a grammar in llguidance's own notation begins with, here as in llama.cpp."""


@runtime_checkable
class KnowsGrammars(Protocol):
    """A tokenizer that hands its vocabulary over by itself; one of the package ``tokenizers`` need not."""

    def grammar_vocabulary(self, n_vocab: int, eos_token_ids: list[int]) -> llguidance.LLTokenizer:
        """Tokens as bytes, and which of them mean something else than text."""
        ...


class ConstraintCompiler:
    """Constraints for one model's vocabulary. Its tokenizer is handed over once, when the first is asked for."""

    def __init__(self, tokenizer: Tokenizer, n_vocab: int, eos_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._n_vocab = n_vocab
        self._eos_token_ids = list(eos_token_ids)
        self._matcher = lru_cache(_N_KEPT)(self._compile)

    def compile(self, params: SamplingParams) -> Constraint | None:
        """The constraint that ``params`` ask for, at its beginning. Raises InvalidRequest that names the place."""
        form = params.form
        return None if form is None else Constraint(self._matcher(*form).deep_copy(), self._n_vocab)

    def _compile(self, kind: str, text: str) -> llguidance.LLMatcher:
        matcher = llguidance.LLMatcher(self._vocabulary, _grammar(kind, text), log_level=0)
        if matcher.is_error():
            place = _failing_place(json.loads(text), self._vocabulary) if kind == "json_schema" else ""
            raise InvalidRequest(f"{kind}{place}: {one_line(matcher.get_error())}")
        return matcher

    @cached_property
    def _vocabulary(self) -> llguidance.LLTokenizer:
        if not self._eos_token_ids:
            raise InvalidRequest("the model has no end token, by which a text of a given form could end")
        backend = self._tokenizer.require_backend()
        try:
            if isinstance(backend, KnowsGrammars):
                return backend.grammar_vocabulary(self._n_vocab, self._eos_token_ids)
            assert isinstance(backend, tokenizers.Tokenizer)
            return llguidance.LLTokenizer(backend.to_str(), n_vocab=self._n_vocab, eos_token=self._eos_token_ids)
        except Exception as error:  # it raises nothing narrower
            raise InvalidRequest(f"no form can be given to this model's texts: {one_line(error)}") from None


class Constraint:
    """Where one generation stands in its grammar. Raises InvalidRequest where the grammar turns out too complex."""

    def __init__(self, matcher: llguidance.LLMatcher, n_vocab: int) -> None:
        self._matcher = matcher
        self._n_vocab = n_vocab

    @property
    def is_over(self) -> bool:
        """Whether only an end token could follow."""
        is_stopped = self._matcher.is_stopped()
        self._check()
        return is_stopped

    def allowed(self) -> np.ndarray:
        """bool ``[n_vocab]``, the caller's own: what may follow, end tokens included where the text may end."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(bits, count=self._n_vocab, bitorder="little").view(bool)

    def accept(self, token_id: int) -> None:
        """Take a token that was allowed."""
        self._matcher.consume_token(token_id)
        self._check()

    def forced(self) -> list[int]:
        """The tokens that follow whatever the model would say, cut as the tokenizer cuts them; often none."""
        token_ids = self._matcher.compute_ff_tokens()
        self._check()
        return token_ids

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = one_line(self._matcher.get_error())
            raise InvalidRequest(f"the form that was asked for cannot be followed: {reason}")


def _grammar(kind: str, text: str) -> str:
    """What llguidance compiles. Raises InvalidRequest for what is no grammar, or no object, at all."""
    if kind == "regex":
        return llguidance.LLMatcher.grammar_from_regex(text)
    try:
        if kind == "json_schema":
            return llguidance.LLMatcher.grammar_from_json_schema(text, defaults=JSON_STYLE)
        return llguidance.LLMatcher.grammar_from_lark(text if text.startswith(_LARK) else gbnf_to_lark(text))
    except Exception as error:  # ValueError, GbnfToLarkError, and Exception itself
        raise InvalidRequest(f"{kind}: {one_line(error)}") from None


_OF_NAMES = ("$defs", "definitions", "properties", "patternProperties")
_OF_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems", "items", "additionalProperties")


def _failing_place(root: Mapping[str, Any], vocabulary: llguidance.LLTokenizer) -> str:
    """``.properties.age`` of the innermost schema that is refused for the same reason as the whole."""
    definitions = {name: root[name] for name in ("$defs", "definitions") if name in root}

    def error(schema: Mapping[str, Any]) -> str:
        matcher = llguidance.LLMatcher(vocabulary, _grammar("json_schema", json.dumps(schema)), log_level=0)
        return str(matcher.get_error())

    reason, place, schema = error(root), "", root
    while True:
        inner = ((f"{place}.{step}", child) for step, child in _children(schema))
        found = next((found for found in inner if error({**definitions, **found[1]}) == reason), None)
        if found is None:
            return place
        place, schema = found


def _children(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The schemas right inside one, definitions first, with the steps that lead to them."""
    for keyword in (*_OF_NAMES, *_OF_SCHEMAS):
        inner = schema.get(keyword)
        if isinstance(inner, Mapping) and keyword in _OF_SCHEMAS:
            yield keyword, inner
        else:
            steps = inner.items() if isinstance(inner, Mapping) else enumerate(inner) if isinstance(inner, list) else ()
            yield from ((f"{keyword}.{step}", child) for step, child in steps if isinstance(child, Mapping))
