"""How much time and memory a chat template may take, and what is looked at before Python makes something large."""

import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

from ..errors import PromptError

SECONDS = 1.0
"""What a prompt's renderings may take together, of this thread's own time; and as much again for each million
characters and items of their input."""
LARGEST, ALL = 1_000_000, 128_000_000
"""Characters and items of one value that a template makes, and of all of them, beside its input's own."""
ITEM = 8
"""Characters that an item counts for."""
BITS = 4096
"""Of a whole number."""

_TRYING = {"rfind", "rindex", "rsplit", "rpartition", "strip", "lstrip", "rstrip"}
"""Methods that may try every character of one text with every one of another."""
_WIDE = {"%": re.compile(r"%[^a-zA-Z%]*(\d{5}|\*)"), "{": re.compile(r"\{[^{}]*(\d{5}|\{)")}
"""Places in formats of both kinds, by what they begin with, that may be wide."""


class BudgetError(PromptError):
    """A chat template that takes too much time or memory."""


class Budget:
    """What one prompt's renderings may take. texts: all that their input holds."""

    def __init__(self, texts: Collection[str] = ()):
        size = sum(len(text) + 100 for text in texts)
        self.largest, self.left = LARGEST + 16 * size, ALL + 128 * size
        self.seconds, self.now = SECONDS * (1 + size / 1e6), datetime.now()
        self._end = time.thread_time() + self.seconds

    def tick(self) -> None:
        if time.thread_time() > self._end:
            raise BudgetError(
                f"this checkpoint's chat template takes more than {self.seconds:.1f} seconds for this prompt: give the "
                "prompt as a string that is formatted already, or a checkpoint with another template"
            )

    def allow(self, size: float) -> None:
        """Before something of this size is made."""
        if size > self.largest:
            raise BudgetError(
                f"this checkpoint's chat template makes a value of more than {self.largest:,} characters: give the "
                "prompt as a string that is formatted already, or a checkpoint with another template"
            )

    def take(self, value: Any) -> Any:
        """The value, which is new."""
        self.tick()
        size = self.weigh(value)
        self.left -= size
        self.allow(size if self.left >= 0 else float("inf"))
        return value

    def weigh(self, value: Any) -> int:
        """Characters and items; as many times as they would be written."""
        size, stack = 0, [value]
        while stack:
            item = stack.pop()
            size += ITEM
            if isinstance(item, str):
                size += len(item)
            elif isinstance(item, Mapping):
                stack += [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple | set | frozenset):
                stack += item
            elif isinstance(item, Namespace):
                stack.append(object.__getattribute__(item, "_Namespace__attrs"))
            elif isinstance(item, int) and item.bit_length() > BITS:
                self.allow(float("inf"))
            self.allow(size + ITEM * len(stack))
        return size

    def turns(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items of a loop."""
        for item in items:
            self.left -= 1
            self.tick()
            yield item


# -- before something is made


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
            budget.allow(float("inf") if abs(precision) > BITS else 0)
        case "trim":
            budget.allow(len(str(value)) * len(kwargs.get("chars", args[0] if args else None) or "") / 100)
        case "format":
            check_format(budget, str(value), "%", (args, kwargs))


def check_method(budget: Budget, owner: Any, name: str, args: tuple[Any, ...], kwargs: Any) -> tuple[Any, ...]:
    """Of Python's own; gives the arguments."""
    if name == "replace" and isinstance(owner, str):
        _check_replace(budget, owner, *args[:2])
    elif name == "join" and isinstance(owner, str) and args:
        return (listed(budget, args[0], owner), *args[1:])
    for given in (*args, *kwargs.values()):
        if isinstance(given, int):
            budget.allow(given)
        elif isinstance(given, str) and name in _TRYING:
            budget.allow(len(owner) * len(given) / 100)
    return args


def _check_replace(budget: Budget, text: str, old: Any = "", new: Any = "") -> None:
    budget.allow(len(text) + text.count(str(old)) * len(str(new)))


def listed(budget: Budget, items: Iterable[Any], separator: str) -> list[Any]:
    """What is about to be joined."""
    made, size = [], 0
    for item in budget.turns(items):
        size += budget.weigh(item) + len(separator)
        budget.allow(size)
        made.append(item)
    return made


def check_operation(budget: Budget, operation: str, left: Any, right: Any) -> None:
    numbers = isinstance(left, int) and isinstance(right, int)
    if operation == "*":
        if numbers:
            budget.allow(0 if left.bit_length() + right.bit_length() <= BITS else float("inf"))
        else:
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str | list | tuple) and isinstance(times, int):
                    budget.allow(budget.weigh(value) * max(0, times))
    elif operation == "**" and numbers:
        budget.allow(0 if left.bit_length() * max(0, right) <= BITS else float("inf"))
    elif operation == "%" and isinstance(left, str):
        check_format(budget, left, "%", right)


def check_format(budget: Budget, text: str, sign: str, given: Any) -> None:
    """A text with places for others, which may be there more than once, and be wide."""
    if _WIDE[sign].search(text.replace("{{", "")):
        raise SecurityError("a format has widths of four digits at most, written as digits")
    budget.allow(len(text) + text.count(sign) * (budget.weigh(given) + 10_000))
