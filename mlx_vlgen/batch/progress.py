"""How far a job is: a bar on a terminal, and elsewhere a line now and then."""

import time
from typing import Any

from ..notices import notice, progress_bar
from ..results import speed

LINE_SECONDS = 30.0
BAR_SECONDS = 0.2


class Progress:
    """Counts rows and tokens. items: about how many items the input has, None where that is not known."""

    def __init__(self, items: int | None):
        self._items = items
        self._read = 0  # items
        self._seen = 0  # rows of these items
        self.before = 0  # rows that an earlier run finished
        self.answered = self.failed = self.tokens = 0
        self._started = self._said = time.monotonic()
        self._bar: Any = None
        self._shows = False

    def start(self) -> None:
        """Now the model is loaded: speeds count from here."""
        self._started = self._said = time.monotonic()
        self._bar = progress_bar("answering", "row")
        self._shows = True

    def read(self, rows: int) -> None:
        """One more item was read, of so many rows."""
        self._read += 1
        self._seen += rows

    @property
    def finished(self) -> int:
        return self.before + self.answered + self.failed

    def show(self) -> None:
        now = time.monotonic()
        if not self._shows or now - self._said < (LINE_SECONDS if self._bar is None else BAR_SECONDS):
            return
        self._said = now
        if self._bar is None:
            notice(self._line(now))
            return
        self._bar.total, self._bar.initial, self._bar.n = self._total, self.before, self.finished
        self._bar.set_postfix_str(self._postfix(now))

    def summary(self) -> str:
        """The speed of this run, where there was any work."""
        seconds, done = time.monotonic() - self._started, self.answered + self.failed
        if not done:
            return ""
        return f"; {speed(done, seconds):.1f} rows/s, {speed(self.tokens, seconds):.0f} tokens/s"

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def _total(self) -> int | None:
        """About how many rows there will be."""
        if self._items is None or not self._read:
            return None
        return max(self._seen, round(self._items * self._seen / self._read))

    def _postfix(self, now: float) -> str:
        rate = f"{speed(self.tokens, now - self._started):.0f} tokens/s"
        return f"{rate}, {self.failed} failed" if self.failed else rate

    def _line(self, now: float) -> str:
        seconds, done = now - self._started, self.answered + self.failed
        rate = speed(done, seconds)
        of = f" of about {self._total:,}" if self._total is not None else ""
        left = ""
        if self._total is not None and rate:
            left = f", about {_duration((self._total - self.before - done) / rate)} left"
        return f"{self.before + done:,}{of} rows, {rate:.1f} rows/s, {self._postfix(now)}{left}"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return "a minute"
    return f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
