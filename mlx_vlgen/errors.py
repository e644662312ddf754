"""The errors that a person sees. Each message says what was given, what was expected and what to do."""

import traceback


class VlgenError(Exception):
    """Base of every error that this package raises on purpose; the command line prints it without a traceback."""


def printable(text: str) -> str:
    """Text that came from outside, safe for a terminal: no control, escape or bidirectional character stays."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


class MediaError(VlgenError, ValueError):
    """A picture, video or audio clip that cannot be read: missing, foreign, truncated, too large or not allowed."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))  # it may quote names of files, servers and formats


class PromptError(VlgenError, ValueError):
    """A prompt that does not fit its media or its model: placeholders, roles, length."""


class LoadError(VlgenError, OSError):
    """A checkpoint that cannot be loaded: missing, gated, unknown, damaged or in a format that is refused."""


class UnreachableError(LoadError):
    """A checkpoint that is not on this machine, while the Hub cannot be asked."""


class UnsupportedError(VlgenError, ValueError):
    """An option that is known but that this model, cache or version cannot honour."""


class QueueFullError(VlgenError, RuntimeError):
    """A request that a TokenIterator does not take, since too many wait already."""


def one_line(error: BaseException | None) -> str:
    """An error in one line: its message, after its type where the message was not written for a person."""
    if isinstance(error, VlgenError | ValueError | TypeError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def without_traceback(error: Exception) -> Exception:
    """The error without its traceback, whose frames would keep caches and pixels in memory as long as the result lives.

    The traceback's text stays as a note, except of a VlgenError, whose message says enough.
    """
    if error.__traceback__ and not isinstance(error, VlgenError):
        error.add_note("".join(traceback.format_tb(error.__traceback__)).rstrip())
    cause: BaseException | None = error
    while cause is not None and cause.__traceback__:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    return error
