"""One hostile input, and what may come of it."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from mlx_vlgen.errors import VlgenError

MB = 1_000_000
SPARE = 64 * MB
"""What a refusal, or a small picture, may take."""


class UserError(Exception):
    """Raised by an object or a function of the user's: it comes out as it is."""


@dataclass(frozen=True)
class Try:
    """One hostile input.

    run: gives it to the package; whatever it returns is fine.
    arguments: names of the arguments that a TypeError or ValueError may complain about.
    peak: bytes that it may take at most, over what the process had before, a refusal at most `SPARE`; None where that
    is not the point.
    """

    name: str
    run: Callable[[], object]
    arguments: Collection[str] = ()
    peak: int | None = None


def verdict(error: BaseException | None, arguments: Collection[str]) -> str:
    """ "passed", "refused", or what is wrong with the exception that an input ended with."""
    if error is None:
        return "passed"
    if isinstance(error, VlgenError | UserError):
        return "refused"
    if isinstance(error, TypeError | ValueError) and any(name in str(error) for name in arguments):
        return "refused"
    return f"{type(error).__name__}: {error}"[:500]
