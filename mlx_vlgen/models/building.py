"""Forwards that are built and dropped: MLX raises for shapes that do not fit, and reads no weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_builds_only = ContextVar("builds_only", default=False)


@contextmanager
def building_only() -> Iterator[None]:
    """Inside, no layer computes anything on the way."""
    token = _builds_only.set(True)
    try:
        yield
    finally:
        _builds_only.reset(token)


def builds_only() -> bool:
    return _builds_only.get()
