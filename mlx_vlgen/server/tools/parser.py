"""Calls in a text that streams."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .readers import Beginner, Reader, Schemas, ToolCall, UnfinishedError

PREFIX = 256
"""How many characters tell whether a body begins: white space between them may be long."""

Event = str | ToolCall
"""Text to show, or a call."""


@dataclass(frozen=True)
class Syntax:
    """How a family writes its calls.

    begin, end: the marks around a body; without an end mark a body ends with the `}` or `]` at which it is whole.
    opening: what a body begins with, white space aside: one of these.
    bare: whether an answer that begins like a body is a call without its begin mark.
    read: a body to calls.
    begin_call: the beginning of a body to that of its call; None: nothing of a call is certain before its end.
    """

    begin: str
    end: str
    opening: tuple[str, ...]
    read: Reader
    bare: bool = False
    begin_call: Beginner | None = None

    def may_be_body(self, text: str) -> bool:
        """Whether a text may be the beginning of a body."""
        text = re.sub(r"\s+", "", text[:PREFIX])
        return any(text[: len(begin)] == begin[: len(text)] for begin in self.opening)


class ToolParser:
    """Follows one answer. The events do not depend on how the text is cut into pieces.

    A call is given out when it is whole, with all its arguments: until then it may turn out to be malformed, and then
    it is text. White space beside a call is left out.
    """

    def __init__(self, syntax: Syntax, schemas: Schemas):
        self._syntax, self._schemas = syntax, schemas
        self._text = ""  # not yet decided; begins with the call that is open, if one is
        self._body: int | None = None  # where that call's body begins in it
        self._searched = 0  # up to where no mark is left in it
        self._failed = False  # whether an end mark came at which it could not be read
        self._space = ""  # after the text shown last: dropped if a call comes
        self._after_call = False
        self._fresh = True  # nothing but white space came
        self._events: list[Event] = []

    def feed(self, piece: str) -> list[Event]:
        """What is certain once this piece came."""
        return self._advance(piece, over=False)

    def finish(self) -> list[Event]:
        """What was held back, at the answer's end."""
        return self._advance("", over=True)

    @property
    def begun(self) -> ToolCall | None:
        """The call that is open, as far as it came: with a beginning of its arguments. It may still turn out to be
        malformed."""
        if self._body is None or self._syntax.begin_call is None:
            return None
        return self._syntax.begin_call(self._text[self._body :], self._schemas)

    def _advance(self, piece: str, over: bool) -> list[Event]:
        self._events, self._text = [], self._text + piece
        while self._step_inside(over) if self._body is not None else self._step_outside(over):
            pass
        if over and not self._after_call:
            self._show(self._space, strip=False)
        return self._events

    def _step_outside(self, over: bool) -> bool:
        """Show text up to a call. False once no more can be said."""
        text, begin = self._text, self._syntax.begin
        spaces = len(text) - len(text.lstrip())
        if self._syntax.bare and self._fresh and text[spaces:] and self._syntax.may_be_body(text):
            at, self._body = spaces, 0
        elif (at := text.find(begin)) >= 0:
            self._body = len(begin)
        else:
            at = len(text) - (0 if over else _overlap(text, begin))
        if self._body is not None:
            self._searched, self._failed = self._body, False
        self._text = text[at:]
        self._show(text[:at])
        return self._body is not None

    def _step_inside(self, over: bool) -> bool:
        """Read the call that is open, or give it up. False once more text is needed."""
        text, syntax, body = self._text, self._syntax, self._body or 0
        if not syntax.may_be_body(text[body : body + PREFIX]):
            return self._give_up(body)
        stop = _first_end(text, syntax.end, self._searched)
        again = text.find(syntax.begin, self._searched) if self._failed else -1
        if again >= 0 and (stop < 0 or again < stop):
            return self._give_up(body)
        if stop < 0:
            if over:
                return self._give_up(body)
            self._searched = max(self._searched, len(text) - max(len(syntax.begin), len(syntax.end)) + 1)
            return False
        try:
            calls = syntax.read(text[body : stop - len(syntax.end)], self._schemas)
        except UnfinishedError:
            self._searched, self._failed = stop, True
            return True
        except ValueError:
            return self._give_up(body)
        self._events += calls
        self._text, self._body = text[stop:], None
        self._space, self._after_call, self._fresh = "", True, False
        return True

    def _give_up(self, body: int) -> bool:
        """It is no call: its begin mark is text, and a call may begin after it."""
        mark, self._text, self._body = self._text[:body], self._text[body:], None
        self._fresh = False
        self._show(mark)
        return True

    def _show(self, text: str, strip: bool = True) -> None:
        if self._after_call:
            text = text.lstrip()
        text = self._space + text if strip else text
        shown = text.rstrip() if strip else text
        self._space = text[len(shown) :]
        if shown:
            self._after_call = self._fresh = False
            if self._events and isinstance(self._events[-1], str):
                self._events[-1] += shown
            else:
                self._events.append(shown)


def _first_end(text: str, end: str, start: int) -> int:
    """Where the first end from `start` on is over; -1 without one."""
    if end:
        at = text.find(end, start)
        return at + len(end) if at >= 0 else -1
    found: Sequence[int] = [at for mark in "}]" if (at := text.find(mark, start)) >= 0]
    return min(found) + 1 if found else -1


def _overlap(text: str, mark: str) -> int:
    """How many of the last characters are the beginning of a mark."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
