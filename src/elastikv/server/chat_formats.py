"""How families of models write calls of functions and thoughts, told by the words of their chat templates.

A model that comes with a ``response_template`` of transformers' says so itself; this table is for all others. To add a
family is to add an entry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from elastikv.engine.constraint import JSON_STYLE
from elastikv.weights.tokenizer import Tokenizer

THINK = ("<think>", "</think>")
"""Texts around thoughts: of nearly all open models that think."""

_NO_CALL = {"content": "json", "content_args": {"allow_non_json": True}, "repeats": True}
_TAGGED = {
    "repeats": True,
    "content": "xml-inline",
    "transform": {"function": {"name": "{name}", "arguments": "{content}"}},
}
_JSON_HEAD = r'\s*\{\s*"name"\s*:\s*"(?P<name>(?:[^"\\]|\\.)+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*'


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFormat:
    """One family's way to call functions.

    marks: texts that all stand in its chat templates. region: where a call stands in a reply, as transformers'
    ``response_template`` describes a field. head: what of a region comes before the arguments, if they are JSON and can
    be streamed. before, after: what a call has around its arguments, with ``{name}`` for the function's name. opening,
    closing: what stands around all calls, between: between two of them (None: there is only one). end: the text that
    ends a call, where there is one. tags: what stands before and after an argument, with ``{key}`` for its name, where
    arguments are no JSON object: texts stand there as they are, everything else as JSON.
    """

    marks: tuple[str, ...]
    region: Mapping[str, Any]
    head: str | None = _JSON_HEAD
    before: str
    after: str
    opening: str = ""
    closing: str = ""
    between: str | None = None
    end: str | None = None
    tags: tuple[str, str] | None = None


HERMES = CallFormat(
    marks=("<tool_call>", '"arguments"'),
    region={**_NO_CALL, "open_pattern": r"\s*<tool_call>", "close": "</tool_call>"},
    before='<tool_call>\n{"name": "{name}", "arguments": ',
    after="}\n</tool_call>",
    between="\n",
    end="</tool_call>",
)
_DEEPSEEK: dict[str, Any] = {
    "region": {
        "open_pattern": r"\s*(?:<｜tool▁calls▁begin｜>)?<｜tool▁call▁begin｜>",
        "close": "<｜tool▁call▁end｜>",
        "repeats": True,
    },
    "opening": "<｜tool▁calls▁begin｜>",
    "closing": "<｜tool▁calls▁end｜>",
    "end": "<｜tool▁call▁end｜>",
}
_LIST: dict[str, Any] = {  # of all calls, as one JSON array
    "head": None,
    "before": '{"name": "{name}", "arguments": ',
    "after": "}",
    "between": ", ",
}
_FAMILIES = (
    CallFormat(  # Qwen3.5, Qwen3-Coder
        marks=("<tool_call>", "<function=", "<parameter="),
        region={
            **_TAGGED,
            "open_pattern": r"\s*<tool_call>\s*<function=(?P<name>[^>\n]+)>",
            "close_pattern": r"</function>\s*</tool_call>",
            "content_args": {"tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\n?(?P<value>.*?)\n?</parameter>"},
        },
        head=None,
        before="<tool_call>\n<function={name}>\n",
        after="</function>\n</tool_call>",
        between="\n",
        end="</tool_call>",
        tags=("<parameter={key}>\n", "\n</parameter>\n"),
    ),
    CallFormat(  # GLM 4.5 to 4.7
        marks=("<tool_call>", "<arg_key>"),
        region={
            **_TAGGED,
            "open_pattern": r"\s*<tool_call>\s*(?P<name>[^<\s]+)\s*(?=<)",
            "close": "</tool_call>",
            "content_args": {"tag_pattern": r"<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>"},
        },
        head=None,
        before="<tool_call>{name}\n",
        after="</tool_call>",
        between="\n",
        end="</tool_call>",
        tags=("<arg_key>{key}</arg_key>\n<arg_value>", "</arg_value>\n"),
    ),
    CallFormat(  # MiniMax M2
        marks=("<minimax:tool_call>", "<invoke name="),
        region={
            **_TAGGED,
            "open_pattern": r'\s*(?:<minimax:tool_call>\s*)?<invoke name="(?P<name>[^"]+)">',
            "close": "</invoke>",
            "content_args": {"tag_pattern": r'<parameter name="(?P<key>[^"]+)">(?P<value>.*?)</parameter>'},
        },
        head=None,
        before='<invoke name="{name}">\n',
        after="</invoke>\n",
        opening="<minimax:tool_call>\n",
        closing="</minimax:tool_call>",
        between="",
        end="</invoke>",
        tags=('<parameter name="{key}">', "</parameter>\n"),
    ),
    HERMES,
    CallFormat(  # Mistral, from its eleventh tokenizer on
        marks=("[TOOL_CALLS]", "[ARGS]"),
        region={"open": "[TOOL_CALLS]", "close_pattern": r"(?=\[TOOL_CALLS\])", "repeats": True},
        head=r"\s*(?P<name>[\w.-]+)\[ARGS\]\s*",
        before="[TOOL_CALLS]{name}[ARGS]",
        after="",
        between="",
    ),
    CallFormat(  # Mistral before
        marks=("[TOOL_CALLS]",),
        region={**_NO_CALL, "open": "[TOOL_CALLS]"},
        **_LIST,
        opening="[TOOL_CALLS][",
        closing="]",
    ),
    CallFormat(  # DeepSeek R1 and V3
        marks=("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "```json"),
        **_DEEPSEEK,
        head=r"\w*<｜tool▁sep｜>(?P<name>[^\n]+)\n```json\n",
        before="<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n",
        after="\n```<｜tool▁call▁end｜>",
        between="\n",
    ),
    CallFormat(  # DeepSeek V3.1
        marks=("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"),
        **_DEEPSEEK,
        head=r"(?P<name>[^<\n]+)<｜tool▁sep｜>",
        before="<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>",
        after="<｜tool▁call▁end｜>",
        between="",
    ),
    CallFormat(  # Kimi K2; calls are numbered, so that only one can be forced
        marks=("<|tool_call_begin|>", "<|tool_call_argument_begin|>"),
        region={
            "open_pattern": r"\s*(?:<\|tool_calls_section_begin\|>)?\s*<\|tool_call_begin\|>",
            "close": "<|tool_call_end|>",
            "repeats": True,
        },
        head=r"\s*(?:functions\.)?(?P<name>[\w.-]+)(?::\d+)?\s*<\|tool_call_argument_begin\|>\s*",
        before="<|tool_call_begin|>functions.{name}:0<|tool_call_argument_begin|>",
        after="<|tool_call_end|>",
        opening="<|tool_calls_section_begin|>",
        closing="<|tool_calls_section_end|>",
        end="<|tool_call_end|>",
    ),
    CallFormat(  # Nemotron Nano 2
        marks=("<TOOLCALL>",),
        region={**_NO_CALL, "open_pattern": r"\s*<TOOLCALL>", "close": "</TOOLCALL>"},
        **_LIST,
        opening="<TOOLCALL>[",
        closing="]</TOOLCALL>",
    ),
    CallFormat(  # Granite 3
        marks=("<|tool_call|>",),
        region={**_NO_CALL, "open": "<|tool_call|>"},
        **_LIST,
        opening="<|tool_call|>[",
        closing="]",
    ),
    CallFormat(  # Llama 3
        marks=("<|start_header_id|>", '"parameters"'),
        region={**_NO_CALL, "open_pattern": r'^\s*(?:<\|python_tag\|>|(?=\{\s*"name"))'},
        before='{"name": "{name}", "parameters": ',
        after="}",
    ),
)


def knows_tools(chat_template: str | None) -> bool:
    """Whether a template writes the tools that it is given."""
    return re.search(r"\btools\b|\btool_calls\b", chat_template or "") is not None


def call_format(chat_template: str) -> CallFormat | None:
    """How models with this template call functions; None where nothing here fits."""
    if not knows_tools(chat_template):
        return HERMES  # it never heard of tools: ``tools.as_text`` tells it of them in these words
    return next((family for family in _FAMILIES if all(mark in chat_template for mark in family.marks)), None)


def thinks(chat_template: str) -> bool:
    """Whether models with this template think between ``THINK``."""
    return THINK[1] in chat_template


def calls_grammar(
    family: CallFormat, functions: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, *, several: bool
) -> str:
    """A grammar, in llguidance's notation, of nothing but calls of these functions with arguments that are valid."""
    rules: list[str] = []
    for i, function in enumerate(functions):
        schema = function.get("parameters") or {"type": "object", "properties": {}}
        before = family.before.replace("{name}", _escaped(function["name"], family))
        arguments, values = _tagged(schema, i, family.tags) if family.tags else (f"%json {styled(schema)}", [])
        rules += [f"call_{i}: {_literal(before, tokenizer)} args_{i} {_literal(family.after, tokenizer)}"]
        rules += [f"args_{i}: {arguments}", *values]
    one = "call: " + " | ".join(f"call_{i}" for i in range(len(functions)))
    more = f" ({_literal(family.between, tokenizer)} call)*" if several and family.between is not None else ""
    calls = f"calls: {_literal(family.opening, tokenizer)} call{more} {_literal(family.closing, tokenizer)}"
    return "\n".join([calls, one, *rules, ""])


def styled(schema: Mapping[str, Any]) -> str:
    """A schema inside a grammar: written as ``json.dumps`` writes, and what cannot be enforced left to the model."""
    return json.dumps({**schema, "x-guidance": {"lenient": True, **JSON_STYLE}})


def _escaped(name: str, family: CallFormat) -> str:
    return json.dumps(name, ensure_ascii=False)[1:-1] if '"{name}"' in family.before else name


def _literal(text: str | None, tokenizer: Tokenizer) -> str:
    """A text in a grammar; special tokens in it are named by their ids, for no other token may spell them."""
    if not text:
        return '""'
    added = tokenizer.require_backend().get_added_tokens_decoder()
    special = {token.content: token_id for token_id, token in added.items() if token.special}
    cuts = re.split("(" + "|".join(map(re.escape, special)) + ")", text) if special else [text]
    return " ".join(f"<[{special[cut]}]>" if cut in special else json.dumps(cut) for cut in cuts if cut)


def _tagged(schema: Mapping[str, Any], i: int, tags: tuple[str, str]) -> tuple[str, list[str]]:
    """Arguments in the order of the properties, and a rule for each; texts are free, everything else is JSON."""
    rules, arguments = [], []
    before, after = tags[0], json.dumps(tags[1])
    definitions = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    for n, (key, value) in enumerate((schema.get("properties") or {}).items()):
        name = f"arg_{i}_{n}"
        is_text = isinstance(value, dict) and value.get("type") == "string"
        if is_text and all(isinstance(choice, str) for choice in value.get("enum", [None])):
            rules.append(f"{name}: ({' | '.join(map(json.dumps, value['enum']))}) {after}")
        elif is_text:
            rules.append(f"{name}[suffix={after}]: /(?s:.*)/")
        else:
            rules.append(f"{name}: {name}_json {after}")
            rules.append(f"{name}_json: %json {styled({**definitions, **value} if isinstance(value, dict) else {})}")
        argument = f"{json.dumps(before.replace('{key}', key))} {name}"
        arguments.append(argument if key in schema.get("required", ()) else f"({argument})?")
    return " ".join(arguments) or '""', rules
