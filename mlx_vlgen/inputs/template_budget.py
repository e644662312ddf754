"""How much time and memory a chat template may take, and checks before Python makes something large."""

import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

from ..errors import PromptError

SECONDS = 1.0
"""What a prompt's renderings may take together, in time of this thread; and as much again for each million
characters and items of their input."""
MAX_VALUE, MAX_TOTAL = 1_000_000, 128_000_000
"""Characters and items of one value that a template makes, and of all of them, beside those of its input."""
ITEM_SIZE = 8
"""Characters that an item counts for."""
MAX_BITS = 4096
"""Of a whole number."""

_QUADRATIC = {"rfind", "rindex", "rsplit", "rpartition", "strip", "lstrip", "rstrip"}
"""Methods that may try every character of one text with every one of another."""
_WIDE_FIELDS = {"%": re.compile(r"%[^a-zA-Z%]*(\d{5}|\*)"), "{": re.compile(r"\{[^{}]*(\d{5}|\{)")}
"""Fields of a format that may be wide, for both kinds of format, by what a field begins with."""


class BudgetError(PromptError):
    """A chat template that takes too much time or memory."""


class Budget:
    """What one prompt's renderings may take. texts: all that their input holds."""

    def __init__(self, texts: Collection[str] = ()):
        size = sum(len(text) + 100 for text in texts)
        self.max_value, self.total_left = MAX_VALUE + 16 * size, MAX_TOTAL + 128 * size
        self.seconds, self.now = SECONDS * (1 + size / 1e6), datetime.now()
        self._end = time.thread_time() + self.seconds

    def check_time(self) -> None:
        if time.thread_time() > self._end:
            raise BudgetError(
                f"this checkpoint's chat template takes more than {self.seconds:.1f} seconds for this prompt: give the "
                "prompt as a string that is formatted already, or a checkpoint with another template"
            )

    def allow(self, size: float) -> None:
        """Before something of this size is made."""
        if size > self.max_value:
            raise BudgetError(
                f"this checkpoint's chat template makes a value of more than {self.max_value:,} characters: give the "
                "prompt as a string that is formatted already, or a checkpoint with another template"
            )

    def charge(self, value: Any) -> Any:
        """A new value, counted."""
        self.check_time()
        size = self.measure(value)
        self.total_left -= size
        self.allow(size if self.total_left >= 0 else float("inf"))
        return value

    def measure(self, value: Any) -> int:
        """Characters and items of a value; as many times as they would be written."""
        size, stack = 0, [value]
        while stack:
            item = stack.pop()
            size += ITEM_SIZE
            if isinstance(item, str):
                size += len(item)
            elif isinstance(item, Mapping):
                stack += [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple | set | frozenset):
                stack += item
            elif isinstance(item, Namespace):
                stack.append(object.__getattribute__(item, "_Namespace__attrs"))
            elif isinstance(item, int) and item.bit_length() > MAX_BITS:
                self.allow(float("inf"))
            self.allow(size + ITEM_SIZE * len(stack))
        return size

    def iterate(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items of a loop, counted."""
        for item in items:
            self.total_left -= 1
            self.check_time()
            yield item


# -- checks before something is made


def check_filter(budget: Budget, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
    match name:
        case "replace":
            _check_replace(budget, str(value), *args[:2], **{k: v for k, v in kwargs.items() if k in ("old", "new")})
        case "center" | "batch" | "slice":
            for number in (*args, *kwargs.values()):
                budget.allow(number if isinstance(number, int) else 0)
        case "indent":
            width = kwargs.get("width", args[0] if args else 4)
            lines = str(value).count("\n") + 1
            budget.allow(lines * (len(width) if isinstance(width, str) else width))
        case "round":
            precision = kwargs.get("precision", args[0] if args else 0)
            budget.allow(float("inf") if abs(precision) > MAX_BITS else 0)
        case "trim":
            budget.allow(len(str(value)) * len(kwargs.get("chars", args[0] if args else None) or "") / 100)
        case "format":
            check_format(budget, str(value), "%", (args, kwargs))


def check_method(budget: Budget, owner: Any, name: str, args: tuple[Any, ...], kwargs: Any) -> tuple[Any, ...]:
    """For a method of Python's types; returns its arguments."""
    if name == "replace" and isinstance(owner, str):
        _check_replace(budget, owner, *args[:2])
    elif name == "join" and isinstance(owner, str) and args:
        return (listed(budget, args[0], owner), *args[1:])
    for argument in (*args, *kwargs.values()):
        if isinstance(argument, int):
            budget.allow(argument)
        elif isinstance(argument, str) and name in _QUADRATIC:
            budget.allow(len(owner) * len(argument) / 100)
    return args


def _check_replace(budget: Budget, text: str, old: Any = "", new: Any = "") -> None:
    budget.allow(len(text) + text.count(str(old)) * len(str(new)))


def listed(budget: Budget, items: Iterable[Any], separator: str) -> list[Any]:
    """The items, which will be joined."""
    joined, size = [], 0
    for item in budget.iterate(items):
        size += budget.measure(item) + len(separator)
        budget.allow(size)
        joined.append(item)
    return joined


def check_operation(budget: Budget, operation: str, left: Any, right: Any) -> None:
    numbers = isinstance(left, int) and isinstance(right, int)
    if operation == "*":
        if numbers:
            budget.allow(0 if left.bit_length() + right.bit_length() <= MAX_BITS else float("inf"))
        else:
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str | list | tuple) and isinstance(times, int):
                    budget.allow(budget.measure(value) * max(0, times))
    elif operation == "**" and numbers:
        budget.allow(0 if left.bit_length() * max(0, right) <= MAX_BITS else float("inf"))
    elif operation == "%" and isinstance(left, str):
        check_format(budget, left, "%", right)


def check_format(budget: Budget, text: str, sign: str, arguments: Any) -> None:
    """For a format, whose fields may repeat an argument, and be wide."""
    if _WIDE_FIELDS[sign].search(text.replace("{{", "")):
        raise SecurityError("a format has widths of four digits at most, written as digits")
    budget.allow(len(text) + text.count(sign) * (budget.measure(arguments) + 10_000))
