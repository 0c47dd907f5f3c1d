"""Texts of a given form: what is refused, what may be chosen, and which tokens need no step of their own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import jsonschema_rs
import pytest
from support.random_schemas import random_schema
from support.tiny_models import tiny_model
from support.tiny_tokenizers import replace_tokenizer, sentencepiece_tokenizer

from elastikv import LLM, SamplingParams, SchedulerOptions
from elastikv.errors import GenerationCut, InvalidRequest

PERSON = {
    "type": "object",
    "properties": {"the_name_of_the_person": {"enum": ["Ann", "Bob"]}, "age": {"type": "integer", "maximum": 99}},
    "required": ["the_name_of_the_person", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(n_ctx=2048, n_threads=1, kernels="reference") as demo:
        yield demo


def say(llm: LLM, **params) -> str:
    return llm.generate("x = ", SamplingParams(**{"max_tokens": 200, "seed": 1, **params}))[0].text


def test_a_schema_is_followed_and_the_text_ends_with_it(llm: LLM) -> None:
    output = llm.generate("x = ", SamplingParams(json_schema=PERSON, max_tokens=200, seed=3))[0]
    assert output.finish_reason == "stop"
    jsonschema_rs.validate(PERSON, json.loads(output.text))


@pytest.mark.parametrize("form", [{"json_schema": json.dumps(PERSON)}, {"json_schema": True}])
def test_a_schema_may_be_json_or_true(llm: LLM, form: dict) -> None:
    assert SamplingParams(**form).form[0] == "json_schema"
    llm.scheduler.constraints.compile(SamplingParams(**form))


def test_grammar_regex_and_choice(llm: LLM) -> None:
    assert say(llm, grammar='root ::= "yes" | "no"') in ("yes", "no")
    assert say(llm, grammar='%llguidance {}\nstart: "yes" | "no"') in ("yes", "no")
    assert re.fullmatch("[a-c]{3}-[0-9]{2}", say(llm, regex="[a-c]{3}-[0-9]{2}"))
    assert say(llm, choice=["a+b", "(c)"]) in ("a+b", "(c)")


@pytest.mark.parametrize("temperature", [0, 0.8, 5])
def test_what_is_not_allowed_is_never_chosen_whatever_the_settings(llm: LLM, temperature: float) -> None:
    settings = {"temperature": temperature, "top_k": 0, "top_p": 1, "min_p": 0, "repeat_penalty": 1.5}
    for seed in range(5):
        assert re.fullmatch("[xyz]{8}", say(llm, regex="[xyz]{8}", seed=seed, **settings))
    assert say(llm, regex="[xyz]{3}", logit_bias=dict.fromkeys(range(100), -100), ignore_eos=True)


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_text_that_is_over_ends_whatever_is_banned(llm: LLM, temperature: float) -> None:
    settings = {"temperature": temperature, "ignore_eos": True}
    assert say(llm, regex="", **settings) == ""
    assert say(llm, regex="(ab)?", logit_bias=dict.fromkeys(range(3072), -100), **settings) in ("", "ab")


def test_forced_tokens_cost_no_step(llm: LLM) -> None:
    request = llm.submit("x = ", SamplingParams(json_schema=PERSON, max_tokens=200, seed=3))
    n_steps = 0
    while not request.finished:
        llm.step()
        n_steps += 1
    assert n_steps < request.n_generated / 2
    assert [token_id for delta in request.deltas for token_id in delta.token_ids] == request.token_ids[
        request.n_prompt :
    ]


def test_with_log_probabilities_every_token_has_its_own_step(llm: LLM) -> None:
    output = llm.generate("x = ", SamplingParams(json_schema=PERSON, max_tokens=200, seed=3, logprobs=1))[0]
    assert output.logprobs is not None
    assert [token.token_id for token in output.logprobs] == output.token_ids
    jsonschema_rs.validate(PERSON, json.loads(output.text))


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 5])
def test_forced_tokens_count(llm: LLM, max_tokens: int) -> None:
    output = llm.generate("x = ", SamplingParams(json_schema=PERSON, max_tokens=max_tokens, seed=3))[0]
    assert (len(output.token_ids), output.finish_reason) == (max_tokens, "length")


def test_a_stop_string_may_lie_in_forced_tokens(llm: LLM) -> None:
    output = llm.generate("x = ", SamplingParams(json_schema=PERSON, max_tokens=200, stop="_of_"))[0]
    assert (output.text, output.finish_reason) == ('{"the_name', "stop")


def test_streamed_texts_are_the_same(llm: LLM) -> None:
    params = SamplingParams(json_schema=PERSON, max_tokens=200, seed=3)
    assert "".join(delta.text for delta in llm.stream("x = ", params)) == llm.generate("x = ", params)[0].text


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"json_schema": {"type": "objekt"}}, "json_schema: Invalid type: objekt"),
        (
            {"json_schema": {"properties": {"a": {"items": {"type": "strin"}}, "b": {"type": "string"}}}},
            "json_schema.properties.a.items: Invalid type: strin",
        ),
        (
            {"json_schema": {"$ref": "#/$defs/X", "$defs": {"X": {"anyOf": [{"type": "null"}, {"not": {}}]}}}},
            r'json_schema.\$defs.X.anyOf.1: Unimplemented keys: \["not"\]',
        ),
        ({"json_schema": {"$ref": "#/$defs/X"}}, r"json_schema: Pointer '/\$defs/X' does not exist"),
        ({"json_schema": False}, "json_schema must be an object, got False"),
        ({"json_schema": "{"}, "json_schema must be a JSON Schema: Expecting"),
        ({"json_schema": {"a": object()}}, "json_schema must be a JSON Schema: Object of type object"),
        ({"grammar": 'root ::= "a" | foo'}, "grammar: Rule 'foo' not found"),
        ({"grammar": "root ::= [a-z"}, "grammar: Unexpected end of input at line 1"),
        ({"regex": "[a-z"}, "regex: .*unclosed character class"),
        ({"choice": []}, "choice must be a list of non-empty texts"),
        ({"choice": "yes"}, "choice must be a list of non-empty texts"),
        ({"regex": 5}, "regex must be a text"),
        ({"regex": "a", "choice": ["a"]}, "give only one of .*; got regex and choice"),
    ],
)
def test_what_is_no_form_is_refused_and_the_place_named(llm: LLM, form: dict, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        llm.generate("x = ", SamplingParams(**form))


def test_many_at_once_preempted_and_parked_are_what_each_is_alone(tmp_path) -> None:
    """The budget holds few of them: they give way to each other all the time."""
    texts = [f"def f{i}(): return " + "1 + " * 40 for i in range(6)]
    params = SamplingParams(json_schema=PERSON, max_tokens=200, temperature=0)
    with LLM(n_ctx=2048, n_threads=1, kernels="reference") as alone:
        expected = [alone.generate(text, params)[0].text for text in texts]
    options = SchedulerOptions(park_dir=tmp_path, n_parallel=6)
    with LLM(n_ctx=2048, n_threads=1, kernels="reference", kv_growth="exact", kv_initial=1, scheduler=options) as llm:
        least = llm.cost.least_bytes(max(len(llm.tokenizer.encode(text)) for text in texts))
        llm.set_budget(llm.budget.compute_bytes + 3 * least)
        outputs = llm.generate(texts, params)
        assert llm.scheduler.stats().n_parks
        llm.memory.check()
    assert [output.text for output in outputs] == expected
    for text in expected:
        jsonschema_rs.validate(PERSON, json.loads(text))


def test_a_form_that_becomes_too_complex_ends_with_what_there_is(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    request = llm.submit("x = ", SamplingParams(regex="[a-z]+", max_tokens=50))
    llm.step()
    digit = llm.tokenizer.token_id("1")
    matcher = request._constraint._matcher
    monkeypatch.setattr(request._constraint, "accept", lambda token_id: matcher.consume_token(digit))
    while not request.finished:
        llm.step()
    assert isinstance(request.error, GenerationCut)
    assert isinstance(request.error.cause, InvalidRequest)


def test_a_sentencepiece_tokenizer_will_do_and_none_will_not(tmp_path) -> None:
    folder = tiny_model("llama", tmp_path / "sp")
    replace_tokenizer(folder, sentencepiece_tokenizer(starts_with_space=True), eos_token="<|im_end|>")
    with LLM(folder, n_threads=1, kernels="reference") as llm:
        assert llm.generate([5, 6], SamplingParams(choice=["grow up", "def n"], seed=1))[0].text.strip() in (
            "grow up",
            "def n",
        )
    (folder / "tokenizer.json").unlink()
    with (
        LLM(folder, n_threads=1, kernels="reference") as llm,
        pytest.raises(InvalidRequest, match="without a tokenizer"),
    ):
        llm.generate([5, 6], SamplingParams(choice=["yes"]))


@pytest.mark.slow
def test_two_hundred_random_schemas_are_followed(llm: LLM) -> None:
    schemas = [random_schema(seed) for seed in range(200)]
    params = [SamplingParams(json_schema=schema, max_tokens=1500, seed=i) for i, schema in enumerate(schemas)]
    outputs = llm.generate(["x = "] * len(schemas), params)
    for schema, output in zip(schemas, outputs, strict=True):
        assert output.finish_reason == "stop", (schema, output.text)
        jsonschema_rs.validate(schema, json.loads(output.text))
