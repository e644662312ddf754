"""Values that no argument expects."""

import random
from typing import Any

import numpy as np

from .trial import UserError

NUMBERS: list[Any] = [
    0, -0.0, 1, -1, 2, 3, 7, 64, 255, 511, 512, 513, 577, 10**4, 10**5, 10**6, -577, 2**31 - 1, 2**31, 2**32, 2**63 - 1,
    2**63, 2**64, -(2**63), 10**30, 0.5, 0.999999, 1.0, 1e-39, 1e-45, 1e-300, 1e300, 1e38, -1e-9, float("nan"),
    float("inf"), float("-inf"), True, False, np.int64(3), np.float32("nan"), np.float64(1e-39), np.bool_(True),
]  # fmt: skip
TEXTS: list[Any] = [
    "", " ", "a", "\0", "\ud800", "\x1b[31m", "é" * 50, "<think>", "</think>", "<|im_end|>", "(" * 200,
    "[a-z]{1,99999}", "(a+)+$", "{}", "[]", "nan", "-1", "../..", "x" * 10_000, "\n", "\u202e", "１２", "start: /a+/",
]  # fmt: skip


class Unfriendly:
    """Raises at whatever is done to it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise UserError("unfriendly")

    def __repr__(self) -> str:
        return "Unfriendly()"


def failing(*_: Any, **__: Any) -> Any:
    """A function of the user's."""
    raise UserError("failing")


def value(draw: random.Random, depth: int = 0) -> Any:
    """Anything at all."""
    kind = draw.randrange(12 if depth < 3 else 6)
    if kind < 3:
        return draw.choice(NUMBERS)
    if kind < 5:
        return draw.choice(TEXTS)
    if kind < 6:
        return draw.choice([None, b"", b"abc", object(), Unfriendly(), failing, lambda *_: None, ..., 3j, range(3)])
    if kind < 9:
        return [value(draw, depth + 1) for _ in range(draw.randrange(4))]
    if kind < 10:
        return tuple(value(draw, depth + 1) for _ in range(draw.randrange(3)))
    if kind < 11:
        keys = [draw.choice(["type", "text", "image", "a", 1, None, 2.5, 10**6, -1, (1, 2)]) for _ in range(3)]
        return {key: value(draw, depth + 1) for key in keys[: draw.randrange(4)]}
    return array(draw)


def array(draw: random.Random) -> np.ndarray:
    """Of an odd shape, type or layout; never large in memory."""
    shape = draw.choice([(), (0,), (1,), (3,), (2, 3), (1, 5), (0, 3), (4, 4, 3), (4, 4, 4), (3, 4, 4), (1, 1, 1, 1)])
    dtype = draw.choice(["u1", "i4", "i8", "u8", "f2", "f4", "f8", "c8", "?", "O", "S3", "U2", "M8[s]"])
    values = np.zeros(shape, dtype=dtype)
    if draw.random() < 0.3 and dtype in ("i4", "i8", "f4", "f8"):
        values = np.full(shape, draw.choice([-1, 10**6, 2**31 - 1, 511, 512, 3]), dtype=dtype)
    if draw.random() < 0.1:
        values = np.broadcast_to(np.zeros((), dtype="u1"), (10**5, 10**5, 3))
    return values[::-1] if values.ndim and draw.random() < 0.2 else values


def text(draw: random.Random) -> str:
    return "".join(draw.choice([*TEXTS, "word ", "The ", "user"]) for _ in range(draw.randrange(6)))[:20_000]
