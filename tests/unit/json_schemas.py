"""Schemas drawn at random: small enough that a weak model comes to an end, and of every keyword that is taken."""

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]
WORDS = 'red green blue circle square size name tags count é"\\ x/y 😀'.split()


def draw_schema(draw: random.Random, depth: int = 3) -> Schema:
    """An object, two times of three; objects and arrays nest `depth` deep."""
    leaves = [_enum, _string, _word, _integer, _number, _fixed]
    nests = [_object, _object, _map, _array, _tuple, _either, _shared] if depth else []
    kind = _object if depth == 3 and draw.random() < 0.67 else draw.choice(leaves + nests)
    return kind(draw, lambda: draw_schema(draw, depth - 1))


def _object(draw: random.Random, inner: Callable[[], Schema]) -> Schema:
    names = draw.sample(WORDS, draw.randint(1, 3))
    schema: Schema = {"type": "object", "properties": {name: inner() for name in names}}
    schema["required"] = names[: draw.randint(0, len(names))]
    if draw.random() < 0.8:
        schema["additionalProperties"] = False
    else:  # a further key at most, and of bounded size
        schema["required"] = names
        schema["patternProperties"] = {"^[a-c]{1,3}$": {"type": "boolean"}}
        schema |= {"additionalProperties": False, "maxProperties": len(names) + 1}
    return schema


def _map(draw: random.Random, inner: Callable[[], Schema]) -> Schema:
    high = draw.randint(0, 3)
    names = {"patternProperties": {"^[a-z]{1,4}$": inner()}, "additionalProperties": False}
    return {"type": "object", **names, "minProperties": min(1, high), "maxProperties": high}


def _array(draw: random.Random, inner: Callable[[], Schema]) -> Schema:
    low = draw.randint(0, 2)
    return {"type": "array", "items": inner(), "minItems": low, "maxItems": low + draw.randint(0, 2)}


def _tuple(draw: random.Random, inner: Callable[[], Schema]) -> Schema:
    return {"type": "array", "prefixItems": [inner(), inner()], "items": False, "minItems": 2}


def _either(draw: random.Random, inner: Callable[[], Schema]) -> Schema:
    return {draw.choice(["anyOf", "oneOf"]): [{"type": "null"}, _object(draw, inner)]}


def _shared(draw: random.Random, inner: Callable[[], Schema]) -> Schema:
    """All of two objects."""
    low, high = sorted(draw.sample(range(-50, 50), 2))
    size = {"type": "integer"}
    return {
        "type": "object",
        "allOf": [
            {"properties": {"size": {**size, "minimum": low}}, "required": ["size"]},
            {"properties": {"size": {**size, "maximum": high}, "more": inner()}, "additionalProperties": False},
        ],
    }


def _enum(draw: random.Random, inner: Callable[[], Schema]) -> Schema:
    values = [*draw.sample(WORDS, draw.randint(1, 3)), None, True, 3, -2.5, {"a": [1, "b"]}]
    return {"enum": draw.sample(values, draw.randint(1, 4))}


def _string(draw: random.Random, inner: Callable[[], Schema]) -> Schema:
    low = draw.randint(0, 4)
    return {"type": "string", "minLength": low, "maxLength": low + draw.randint(0, 8)}


def _word(draw: random.Random, inner: Callable[[], Schema]) -> Schema:
    patterns = [r"^[a-z]{2,5}$", r"^(yes|no)( \d{1,2})?$", r"^\w{3}-\d{4}$", '^[^a-z"]{1,4}$']
    return draw.choice([{"type": "string", "pattern": draw.choice(patterns)}, {"type": "string", "format": "date"}])


def _integer(draw: random.Random, inner: Callable[[], Schema]) -> Schema:
    low = draw.randint(-1000, 1000)
    schema = {"type": "integer", "minimum": low, "maximum": low + draw.randint(5, 500)}
    if draw.random() < 0.3:
        schema["multipleOf"] = draw.randint(2, 5)
    return schema


def _number(draw: random.Random, inner: Callable[[], Schema]) -> Schema:
    low = draw.randint(-100, 100) / 8
    schema = {"type": "number", "exclusiveMinimum": low, "maximum": low + draw.randint(1, 50) / 4}
    if draw.random() < 0.7:  # else its digits may go on and on
        schema["multipleOf"] = 0.25
    return schema


def _fixed(draw: random.Random, inner: Callable[[], Schema]) -> Schema:
    return draw.choice([{"type": "boolean"}, {"type": ["boolean", "null"]}, {"const": draw.choice([*WORDS, 7, [1.5]])}])
