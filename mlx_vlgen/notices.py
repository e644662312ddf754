"""Notices on stderr, which say what a person should know and need not act on, and bars of progress."""

import os
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_rewrites: list[Callable[[str], str]] = []


@contextmanager
def rewriting_notices(rewrite: Callable[[str], str]) -> Iterator[None]:
    """Inside this context `rewrite` changes every notice, or makes nothing of it: the command line names flags in the
    place of keywords."""
    _rewrites.append(rewrite)
    try:
        yield
    finally:
        _rewrites.pop()


def notice(text: str) -> None:
    for rewrite in _rewrites:
        text = rewrite(text)
    if text:
        print_wrapped(f"mlx_vlgen: {text}")


def print_wrapped(text: str) -> None:
    """Print on stderr; on a terminal break lines between words."""
    if on_terminal():
        width = int(os.environ.get("COLUMNS") or os.get_terminal_size(sys.stderr.fileno()).columns)
        fill = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False).fill
        text = "\n".join(map(fill, text.split("\n")))
    print_stderr(text)


def print_stderr(text: str, end: str = "\n") -> None:
    """Print on stderr; nowhere when it is closed, since print would take stdout instead."""
    if sys.stderr is not None:
        print(text, end=end, file=sys.stderr, flush=True)


def format_size(size: int) -> str:
    """Bytes, for a person."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def on_terminal() -> bool:
    """Whether stderr is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def progress_bar(doing: str, unit: str, total: int | None = None) -> Any | None:
    """A bar that shows after a second; None where stderr is no terminal."""
    if not on_terminal():
        return None
    from huggingface_hub.utils import tqdm

    return tqdm(desc=doing, unit=f" {unit}s", total=total, leave=False, delay=1.0)


class PromptBar:
    """Shows on a terminal how much of a prompt is read, from two seconds on until it is read."""

    def __init__(self, seconds: float = 2.0) -> None:
        self._bar = progress_bar("reading the prompt", "token")
        self._lock = threading.Lock()
        # A short prompt is one step, however long that takes: nobody else would tell the bar that time passes.
        self._timer = threading.Timer(seconds, self._show)
        if self._bar is not None:
            self._bar.delay = seconds
            self._timer.daemon = True
            self._timer.start()

    def _show(self) -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.delay = 0.0  # without which it would not be cleared
                self._bar.refresh()

    def update(self, done: int, total: int) -> None:
        """Tokens computed, and tokens in all."""
        if self._bar is not None:
            self._bar.total = total
            self._bar.update(done - self._bar.n)
        if done == total:
            self.close()

    def close(self) -> None:
        self._timer.cancel()
        with self._lock:
            if self._bar is not None:
                self._bar.close()
                self._bar = None
