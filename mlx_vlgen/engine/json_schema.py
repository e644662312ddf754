"""What of a JSON schema llguidance holds an answer to, and where in it a fault lies."""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..errors import PromptError, UnsupportedError

OPTIONS: Any = {
    # On one line, as json.dumps writes it: weak models write white space without end where they may.
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    # No \u0061: as a further key it would stand beside "a" and be the same one to who reads the answer.
    "json_allowed_escapes": 'nrbtf\\"',
}
"""For llguidance, above its defaults."""

_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPPINGS = ("properties", "patternProperties", "$defs", "definitions")
_SINGLE = ("items", "additionalItems", "additionalProperties")
_KNOWN = frozenset(
    [
        *(*_LISTS, *_MAPPINGS, *_SINGLE),
        *"type const enum $ref minItems maxItems required minProperties maxProperties minLength maxLength".split(),
        *"pattern format minimum maximum exclusiveMinimum exclusiveMaximum multipleOf".split(),
    ]
)
_ANNOTATIONS = frozenset(
    "title description default examples example deprecated readOnly writeOnly $comment $id id $anchor contentMediaType "
    "contentEncoding discriminator".split()
)

_EXACT = 2**53  # llguidance's numbers are float64

Place = tuple[str | int, ...]


def check(schema: Any) -> Any:
    """The schema as llguidance is to have it. PromptError for what is no schema, UnsupportedError for what llguidance
    would pass over in silence, both with the place as a JSON pointer."""
    if schema is False:
        raise PromptError("json_schema: the schema is false, by which nothing is valid")
    if schema is True:
        return {}
    if isinstance(schema, Mapping) and "$schema" in schema:
        dialect, schema = schema["$schema"], {key: value for key, value in schema.items() if key != "$schema"}
        # Of an older draft llguidance passes over the keywords of later ones.
        if not isinstance(dialect, str) or not re.match("https?://json-schema.org/", dialect):
            raise UnsupportedError(f"json_schema: its $schema is {dialect!r}, and only json-schema.org's are known")
    for place, part in _parts(schema):
        if not isinstance(part, Mapping | bool):
            raise PromptError(f"json_schema{_at(place)}: expected a schema, which is an object or true or false")
        if isinstance(part, Mapping):
            _check_part(place, part)
    return schema


def _check_part(place: Place, part: Mapping[str, Any]) -> None:
    for name, value in part.items():
        if name in _ANNOTATIONS or (name.startswith("x-") and name != "x-guidance"):
            continue
        if name not in _KNOWN:
            near = difflib.get_close_matches(name, _KNOWN, n=1, cutoff=0.8)
            hint = f"did you mean {near[0]!r}?" if near else "leave it out, and check the answer for it"
            raise UnsupportedError(f"json_schema{_at(place)}: {name!r} cannot be enforced; {hint}")
        if name in ("exclusiveMinimum", "exclusiveMaximum") and isinstance(value, bool):
            raise UnsupportedError(f"json_schema{_at((*place, name))}: {value} is draft 4's; give the number here")
        if name == "multipleOf" and isinstance(value, int | float) and value <= 0:
            raise PromptError(f"json_schema{_at((*place, name))}: {value}: expected more than 0")
        if name not in (*_LISTS, *_MAPPINGS, *_SINGLE):
            _check_values((*place, name), value)
        elif name in ("properties", "patternProperties") and isinstance(value, Mapping):
            _check_values((*place, name), list(value))
    named = {*_of(part, "properties", Mapping), *map(str, _of(part, "required", list))}
    minimum = part.get("minProperties")
    if isinstance(minimum, int) and minimum > len(named) + 1:
        raise UnsupportedError(
            f"json_schema{_at((*place, 'minProperties'))}: more keys than are named cannot be counted, for one may be "
            "written twice; name them in `properties` and `required`"
        )


def _of(part: Mapping[str, Any], name: str, kind: type) -> Any:
    """A keyword's value; nothing where it has another kind, which llguidance tells of."""
    value = part.get(name)
    return value if isinstance(value, kind) else ()


def _check_values(place: Place, value: Any) -> None:
    """UnsupportedError for numbers and strings that llguidance cannot write."""
    if isinstance(value, Mapping):
        _check_values(place, list(value))
        for name, item in value.items():
            _check_values((*place, name), item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_values((*place, index), item)
    elif isinstance(value, int) and abs(value) > _EXACT:
        raise UnsupportedError(f"json_schema{_at(place)}: {value} is too large to be compared exactly (2**53 at most)")
    elif isinstance(value, str) and (control := re.search(r"[\x00-\x07\x0b\x0e-\x1f\x7f]", value)):
        raise UnsupportedError(f"json_schema{_at(place)}: the control character {control[0]!r} is never written")


def _parts(schema: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Each schema within, outer ones first, and where it stands."""
    yield place, schema
    if not isinstance(schema, Mapping):
        return
    for name, value in schema.items():
        if name in _MAPPINGS and isinstance(value, Mapping):
            inner: Any = value.items()
        elif (name in _LISTS or name == "items") and isinstance(value, list):
            inner = enumerate(value)
        elif name in _SINGLE:
            yield from _parts(value, (*place, name))
            continue
        else:
            continue
        for key, part in inner:
            yield from _parts(part, (*place, name, key))


def place_of(schema: Any, faulty: Callable[[Any], bool]) -> str:
    """Where the innermost schema stands that is faulty by itself."""
    shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
    inner = [(place, part) for place, part in _parts(schema) if place and isinstance(part, Mapping)]
    for place, part in sorted(inner, key=lambda entry: (-len(entry[0]), "$ref" in entry[1])):
        if faulty({**shared, **part}):
            return _at(place)
    return ""


def _at(place: Place) -> str:
    """As a JSON pointer (RFC 6901)."""
    pointer = "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in place)
    return f" at {pointer}" if place else ""
