"""Fields of a body as keywords of a request: each interface has a table of them, a row each."""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import ApiError

Reader = Callable[[Any], Any]
"""JSON's value -> ours. ValueError says what was expected."""

Log = Callable[[str], None]


@dataclass(frozen=True)
class Parameter:
    """One field of a body.

    read: checks its value.
    group: what it belongs to: "sampling" (`SamplingParams`), "media" (`MediaInputs`) or "call" (`Call`, and what the
        interface does with it).
    keyword: its name there, where it is another one.
    """

    name: str
    read: Reader
    group: str = "call"
    keyword: str = ""


def read_fields(
    table: Sequence[Parameter], tolerated: Mapping[str, Reader], body: Mapping[str, Any], lenient: Log | None
) -> dict[str, dict[str, Any]]:
    """The keywords of each group; null is what was not said. ApiError names a field that is not known, not right, or
    said twice. tolerated: fields that change no answer. lenient: is told of unknown fields, which are left out."""
    known = {parameter.name: parameter for parameter in table}
    groups: dict[str, dict[str, Any]] = {"sampling": {}, "media": {}, "call": {}}
    for name, value in body.items():
        parameter = known.get(name)
        reader = parameter.read if parameter else tolerated.get(name)
        if reader is None:
            refuse_unknown(name, [*known, *tolerated], lenient)
            continue
        if value is None:
            continue
        try:
            value = reader(value)
        except ValueError as error:
            raise ApiError(400, f"{name}={value!r:.80}: expected {error}", param=name) from None
        if parameter is None:
            continue
        keyword, group = parameter.keyword or name, groups[parameter.group]
        if keyword in group and group[keyword] != value:
            raise ApiError(400, f"{name}={value!r:.80}: another field says {group[keyword]!r:.80}", param=name)
        group[keyword] = value
    return groups


def refuse_unknown(name: str, known: Iterable[str], lenient: Log | None, place: str = "") -> None:
    """ApiError for a field that is not known; where unknown ones are tolerated, a line in the log."""
    if lenient is not None:
        lenient(f"{place}{name}: not known, left out")
        return
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    hint = f"did you mean {near[0]!r}?" if near else "leave it out, or start the server with --lenient"
    raise ApiError(400, f"{place}{name}: this server does not know it: {hint}", f"{place}{name}", "unknown_parameter")


def only(part: Mapping[str, Any], names: Iterable[str], place: str, lenient: Log | None) -> None:
    """ApiError for a key of a message or part that is none of `names`."""
    known = frozenset(names)
    for name in part:
        if name not in known and part[name] is not None:
            refuse_unknown(name, known, lenient, f"{place}.")


# Readers


def anything(value: Any) -> Any:
    return value


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("text")
    return value


def items(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("a list")
    return value


def mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("an object")
    return value


def whole(low: int, high: int | None = None) -> Reader:
    def read(value: Any) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if (
            isinstance(value, bool)
            or not isinstance(value, int)
            or not low <= value <= (2**63 if high is None else high)
        ):
            raise ValueError(f"a whole number from {low}{'' if high is None else f' to {high}'}")
        return value

    return read


def number(low: float, high: float = math.inf) -> Reader:
    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"a number from {low:g}{'' if high == math.inf else f' to {high:g}'}")
        return float(value)

    return read


def one_of(*values: Any) -> Reader:
    def read(value: Any) -> Any:
        if not any(value is known or (value == known and type(value) is type(known)) for known in values):
            raise ValueError(" or ".join(map(repr, values)))
        return value

    return read


def texts(limit: int) -> Reader:
    """One text, or a list of so many; none of them empty."""

    def read(value: Any) -> tuple[str, ...]:
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(item, str) and item for item in values):
            raise ValueError("text, or a list of texts, none of them empty")
        if len(values) > limit:
            raise ValueError(f"at most {limit} texts")
        return tuple(values)

    return read


def token_biases(value: Any) -> dict[int, float]:
    """JSON's keys are strings; ids are numbers."""
    if not isinstance(value, dict) or not all(key.isascii() and key.isdecimal() and len(key) < 10 for key in value):
        raise ValueError("an object from token ids to numbers")
    bias = number(-100, 100)
    return {int(key): bias(item) for key, item in value.items()}


SAMPLING = (
    Parameter("temperature", number(0, 2), "sampling"),
    Parameter("top_p", number(0, 1), "sampling"),
    Parameter("top_k", whole(-1, 1 << 20), "sampling"),
    Parameter("min_p", number(0, 1), "sampling"),
    Parameter("seed", whole(-(2**63)), "sampling"),
    Parameter("repetition_penalty", number(0.01, 100), "sampling"),
    Parameter("presence_penalty", number(-2, 2), "sampling"),
    Parameter("frequency_penalty", number(-2, 2), "sampling"),
    Parameter("logit_bias", token_biases, "sampling"),
)
"""How tokens are drawn, as OpenAI and vLLM name it."""

OURS = (
    Parameter("prompt_lookup", whole(1, 64)),
    Parameter("reuse", flag),
)
"""What this engine has beyond them, in each interface."""
