"""Readers of a setting's value: (its name, what was given) -> the value. ValueError, naming both, for what is none."""

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from ..engine.params import finite

Reader = Callable[[str, Any], Any]


def wrong(name: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"{name}={value!r:.80}: expected {expected}")


def entries(name: str, value: Any) -> dict[str, Any]:
    """What a mapping or an object holds."""
    if not isinstance(value, Mapping) and not hasattr(value, "__dict__"):
        raise wrong(name, value, "a mapping, or an object of transformers")
    return dict(value if isinstance(value, Mapping) else vars(value))


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise wrong(name, value, "True or False")
    return bool(value)


def whole(least: int = -(2**63), most: int = 2**63 - 1) -> Reader:
    """A whole number within bounds, inclusive."""

    def read(name: str, value: Any) -> int:
        if not isinstance(value, Integral) or isinstance(value, bool) or not least <= int(value) <= most:
            raise wrong(name, value, f"a whole number from {least} to {most}")
        return int(value)

    return read


def number(expected: str, right: Callable[[float], bool] = finite) -> Reader:
    """A number of which `right` is true; finite, unless `right` says otherwise."""

    def read(name: str, value: Any) -> float:
        real = isinstance(value, Real) and not isinstance(value, bool)
        if not real or not right(value):
            raise wrong(name, value, expected)
        return float(value)

    return read


def choice(*values: Any) -> Reader:
    """One of these, and of the same type."""

    def read(name: str, value: Any) -> Any:
        if not any(value is known or (isinstance(value, str) and value == known) for known in values):
            raise wrong(name, value, " or ".join(map(repr, values)))
        return value

    return read


def strings(name: str, value: Any) -> tuple[str, ...]:
    """One or several."""
    texts = (value,) if isinstance(value, str) else listed(name, value, "text, or a list of texts")
    if not all(isinstance(text, str) and text for text in texts):
        raise wrong(name, value, "text, or a list of texts, none of them empty")
    return tuple(texts)


def ids(name: str, value: Any) -> tuple[int, ...]:
    """One or several."""
    value = _from_array(name, value)
    tokens = (value,) if isinstance(value, Integral) else listed(name, value, "a token id, or a list of ids")
    return tuple(whole()(name, token) for token in tokens)


def sequences(name: str, value: Any) -> tuple[tuple[int, ...], ...]:
    """Several sequences of ids, none of them empty."""
    return tuple(_sequence(name, one) for one in listed(name, value, "a list of lists of token ids"))


def weighted_sequences(name: str, value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    """{(id, …): number} or [[[id, …], number], …]. Of equal sequences the last one counts."""
    pairs = list(value.items() if isinstance(value, Mapping) else listed(name, value, "sequences with their biases"))
    if not all(isinstance(one, list | tuple) and len(one) == 2 for one in pairs):
        raise wrong(name, value, "{(id, …): bias} or [[[id, …], bias], …]")
    read = number("a bias for each sequence", lambda value: not math.isnan(value))  # -inf forbids one
    return tuple({_sequence(name, tokens): read(name, bias) for tokens, bias in pairs}.items())


def pair(name: str, value: Any) -> tuple[int, float]:
    """(a number of tokens, a factor)."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise wrong(name, value, "(start, factor)")
    return whole(0)(name, value[0]), number("a factor", lambda value: value > 0 and finite(value))(name, value[1])


def _sequence(name: str, value: Any) -> tuple[int, ...]:
    tokens = ids(name, value)
    if isinstance(value, Integral) or not tokens or min(tokens) < 0:
        raise wrong(name, value, "a sequence of token ids, not empty")
    return tokens


def listed(name: str, value: Any, expected: str) -> list[Any]:
    value = _from_array(name, value)
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        raise wrong(name, value, expected)
    return list(value)


def _from_array(name: str, value: Any) -> Any:
    """An array as numbers in lists; any other value as it is."""
    if not hasattr(value, "tolist"):
        return value
    if getattr(value, "size", 0) > 1 << 20:  # numpy's may be views of a single number
        raise ValueError(f"{name}: an array of shape {value.shape}; expected a million values at most")
    return value.tolist()
