"""Readers of a keyword's value: (the keyword's name, its value) -> the value to use. ValueError, which names both."""

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from ..engine.params import finite
from ..errors import UnsupportedError

Reader = Callable[[str, Any], Any]

Unsupported = Mapping[str, tuple[tuple[Any, ...], str]]
"""Keyword -> (the values that ask for nothing, besides None; why any other is refused, and what to do instead)."""


def refuse_unsupported(unsupported: Unsupported, name: str, value: Any) -> None:
    """UnsupportedError for a value that asks for something."""
    idle_values, reason = unsupported[name]
    value = value.item() if isinstance(value, np.generic) else value
    plain = isinstance(value, bool | int | float | str | list)  # an array compares to an array
    if value is not None and not (plain and value in idle_values):
        raise UnsupportedError(f"{name}={value!r:.80}: {reason}")


def unexpected(name: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"{name}={value!r:.80}: expected {expected}")


def as_dict(name: str, value: Any) -> dict[str, Any]:
    """The items of a mapping, or the attributes of an object."""
    if not isinstance(value, Mapping) and not hasattr(value, "__dict__"):
        raise unexpected(name, value, "a mapping, or an object of transformers")
    return dict(value if isinstance(value, Mapping) else vars(value))


def as_list(name: str, value: Any, expected: str) -> list[Any]:
    value = _from_array(name, value)
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        raise unexpected(name, value, expected)
    return list(value)


def anything(name: str, value: Any) -> Any:
    """Whatever it is: it is read elsewhere."""
    return value


def boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise unexpected(name, value, "True or False")
    return bool(value)


def integer(minimum: int = -(2**63), maximum: int = 2**63 - 1) -> Reader:
    """A whole number within bounds, inclusive."""

    def read(name: str, value: Any) -> int:
        if not isinstance(value, Integral) or isinstance(value, bool) or not minimum <= int(value) <= maximum:
            raise unexpected(name, value, f"a whole number from {minimum} to {maximum}")
        return int(value)

    return read


def number(expected: str, accept: Callable[[float], bool] = finite) -> Reader:
    """A number that `accept` is true for; finite, unless `accept` says otherwise."""

    def read(name: str, value: Any) -> float:
        real = isinstance(value, Real) and not isinstance(value, bool)
        if not real or not accept(value):
            raise unexpected(name, value, expected)
        return float(value)

    return read


any_number = number("a number")
not_negative = number("at least 0", lambda value: value >= 0 and finite(value))
positive = number("more than 0", lambda value: value > 0 and finite(value))
fraction = number("0 to 1", lambda value: 0 <= value <= 1)
positive_fraction = number("more than 0, at most 1", lambda value: 0 < value <= 1)


def one_of(*values: Any) -> Reader:
    """One of these, and of the same type."""

    def read(name: str, value: Any) -> Any:
        if not any(value is known or (isinstance(value, str) and value == known) for known in values):
            raise unexpected(name, value, " or ".join(map(repr, values)))
        return value

    return read


def strings(name: str, value: Any) -> tuple[str, ...]:
    """One or several."""
    texts = (value,) if isinstance(value, str) else as_list(name, value, "text, or a list of texts")
    if not all(isinstance(text, str) and text for text in texts):
        raise unexpected(name, value, "text, or a list of texts, none of them empty")
    return tuple(texts)


def ids(name: str, value: Any) -> tuple[int, ...]:
    """One or several."""
    value = _from_array(name, value)
    tokens = (value,) if isinstance(value, Integral) else as_list(name, value, "a token id, or a list of ids")
    return tuple(integer()(name, token) for token in tokens)


def seeds(name: str, value: Any) -> int | tuple[int, ...]:
    """One, or a list of one a row."""
    if isinstance(value, list | tuple):
        return ids(name, value)
    seed: int = integer()(name, value)
    return seed


def sequences(name: str, value: Any) -> tuple[tuple[int, ...], ...]:
    """Several sequences of ids, none of them empty."""
    return tuple(_sequence(name, tokens) for tokens in as_list(name, value, "a list of lists of token ids"))


def weighted_sequences(name: str, value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    """{(id, …): number} or [[[id, …], number], …]. Of equal sequences the last one counts."""
    pairs = list(value.items() if isinstance(value, Mapping) else as_list(name, value, "sequences with their biases"))
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise unexpected(name, value, "{(id, …): bias} or [[[id, …], bias], …]")
    read = number("a bias for each sequence", lambda value: not math.isnan(value))  # -inf forbids one
    return tuple({_sequence(name, tokens): read(name, bias) for tokens, bias in pairs}.items())


def start_and_factor(name: str, value: Any) -> tuple[int, float]:
    """(a number of tokens, a factor)."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise unexpected(name, value, "(start, factor)")
    return integer(0)(name, value[0]), number("a factor", lambda value: value > 0 and finite(value))(name, value[1])


def _sequence(name: str, value: Any) -> tuple[int, ...]:
    tokens = ids(name, value)
    if isinstance(value, Integral) or not tokens or min(tokens) < 0:
        raise unexpected(name, value, "a sequence of token ids, not empty")
    return tokens


def _from_array(name: str, value: Any) -> Any:
    """An array as numbers in lists; any other value as it is."""
    if not hasattr(value, "tolist"):
        return value
    if getattr(value, "size", 0) > 1 << 20:  # numpy's may be views of a single number
        raise ValueError(f"{name}: an array of shape {value.shape}; expected a million values at most")
    return value.tolist()
