"""JSON Schemas by chance, of all kinds that a tool's parameters have; every text that follows one is bounded."""

from __future__ import annotations

import random
from typing import Any

_WORDS = ("city", "unit", "date_of_birth", "naïve key", "a", "max_results", "東京", "x-y", 'say "hi"', "path\\to")


def random_schema(seed: int) -> dict[str, Any]:
    """An object, as arguments and replies are."""
    rng = random.Random(seed)
    return _object(rng, depth=rng.randint(1, 3))


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(_WORDS, rng.randint(1, 4))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: _schema(rng, depth - 1) for name in names},
        "required": [name for name in names if rng.random() < 0.7],
        "additionalProperties": False,
    }
    return schema


def _schema(rng: random.Random, depth: int) -> dict[str, Any]:
    leaves = [_string, _integer, _number, _fixed]
    return rng.choice(leaves if depth <= 0 else [*leaves, _nested, _nested, _nested])(rng, depth)


def _nested(rng: random.Random, depth: int) -> dict[str, Any]:
    kind = rng.choice(("object", "array", "anyOf", "tuple"))
    if kind == "object":
        return _object(rng, depth)
    if kind == "array":
        return {"type": "array", "items": _schema(rng, depth - 1), "minItems": rng.randint(0, 2), "maxItems": 3}
    if kind == "anyOf":
        return {"anyOf": [_schema(rng, depth - 1), {"type": "null"}]}
    prefix = [_schema(rng, depth - 1) for _ in range(2)]
    return {"type": "array", "prefixItems": prefix, "items": False, "minItems": 2}


def _string(rng: random.Random, depth: int) -> dict[str, Any]:
    return rng.choice(
        (
            {"type": "string", "maxLength": rng.randint(0, 20)},
            {"type": "string", "pattern": "^[a-f]{2,6}(-[0-9]{2})?$"},
            {"type": "string", "format": "date"},
            {"type": "string", "format": "uuid"},
        )
    )


def _integer(rng: random.Random, depth: int) -> dict[str, Any]:
    low = rng.randint(-500, 500)
    return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 1000)}


def _number(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": "number", "multipleOf": 1, "minimum": 0, "maximum": rng.randint(1, 300)}


def _fixed(rng: random.Random, depth: int) -> dict[str, Any]:
    return rng.choice(
        ({"type": "boolean"}, {"enum": ["celsius", "kelvin", 3, None]}, {"const": "a fixed, rather long text"})
    )
