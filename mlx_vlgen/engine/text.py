"""Tokens to text, one at a time: incremental detokenizing, and stop strings across token borders."""

from collections.abc import Sequence
from typing import Any

PENDING = 32
"""Tokens that may wait for the rest of a character. It has four bytes at most: so many halves are not one."""


class Detokenizer:
    """Emits the text of each token as soon as it is settled: never half a character, unless more than `PENDING` tokens
    in a row give none.

    Works for every tokenizer, also where a token's text depends on the one before it: the new text is what `decode`
    gives with the new tokens after the last settled ones, and not without them. The pieces join to `decode(tokens)`.
    What a token costs does not depend on how many came before.
    """

    def __init__(self, tokenizer: Any = None, skip_special_tokens: bool = False):
        self._tokenizer, self._skip = tokenizer, skip_special_tokens
        self._window: list[int] = []  # the tokens that were emitted last, and after them those that still wait
        self._settled = 0  # how many of them were emitted
        self._before = self._text = ""  # of the emitted ones, of all of them

    def decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=self._skip, clean_up_tokenization_spaces=False))

    def add(self, token: int) -> str:
        text = self.decode([*self._window, token])
        if text == self._text and not self.decode([token, token]):
            return ""  # a special token that is skipped: in the window it would stand for text
        self._window.append(token)
        self._text = text
        if not text.endswith("\ufffd"):
            return self._settle(text, len(self._window))
        if len(self._window) - self._settled > PENDING:
            return self._settle(*self._certain())
        return ""

    def finish(self) -> str:
        """What is still held back: an incomplete character becomes U+FFFD, as in `decode`."""
        return self._settle(self._text, len(self._window)) if self._window else ""

    def _certain(self) -> tuple[str, int]:
        """Text that no later token changes, and of how many tokens of the window: all but the last three, or a few more
        where that cuts a character."""
        for count in range(len(self._window) - 3, self._settled, -1):
            text = self.decode(self._window[:count])
            if self._text.startswith(text):
                return text, count
        return self._text, len(self._window)

    def _settle(self, text: str, count: int) -> str:
        """Emit what is new in `text`, that of the first `count` tokens."""
        new = text[len(self._before) :]
        if new:  # a window of tokens without text would not show what the text before them is
            self._window, count = self._window[self._settled :], count - self._settled
        self._settled = count
        self._before = self.decode(self._window[:count])
        self._text = self._before if count == len(self._window) else self.decode(self._window)
        return new


class TextStream:
    """A row's text: detokenized, cut at the first stop string, and held back while a stop string may be under way.

    tokenizer: None for a text that stays empty. released: the text, piece by piece.
    stopped: whether a stop string came, after which there is none.
    """

    def __init__(self, tokenizer: Any = None, stop: Sequence[str] = (), skip_special_tokens: bool = False):
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens)
        self._stop = tuple(stop)
        self._pending_text = ""
        self.released: list[str] = []
        self._length = 0  # of all that
        self._ends: list[int] = []  # where each token's text ends
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that is now certain."""
        text = self._release(self._detokenizer.add(token))
        self._ends.append(self._length + len(self._pending_text))
        return text

    def end_of(self, count: int) -> int:
        """Where the text of the first `count` tokens ends in what was released."""
        if count >= len(self._ends):
            return self._length
        return min(self._ends[count - 1], self._length) if count else 0

    def finish(self) -> str:
        """The rest, when no more tokens come."""
        return self._release(self._detokenizer.finish(), final=True)

    def decode(self, tokens: Sequence[int]) -> str:
        """Any of the row's tokens as text, cut like the whole."""
        text = self._detokenizer.decode(list(tokens))
        return text[: self._first_stop(text)]

    def stops(self, tokens: Sequence[int]) -> bool:
        """Whether a stop string comes in these tokens' text."""
        return bool(self._stop) and self._first_stop(self._detokenizer.decode(list(tokens))) is not None

    def _first_stop(self, text: str) -> int | None:
        return min((at for at in (text.find(stop) for stop in self._stop) if at >= 0), default=None)

    def _release(self, new: str, final: bool = False) -> str:
        if self.stopped:
            return ""
        text = self._pending_text + new
        end = self._first_stop(text)
        if end is not None:
            self.stopped = True
        elif final:
            end = len(text)
        else:
            end = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        self._pending_text = "" if self.stopped else text[end:]
        self.released.append(text[:end])
        self._length += len(self.released[-1])
        return self.released[-1]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
