"""What a person should know and need not act on: a line on stderr; and how far a long work is."""

import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_reworded: list[Callable[[str], str]] = []


@contextmanager
def reworded(how: Callable[[str], str]) -> Iterator[None]:
    """Within this, notices go through `how` first: the command line's speak of flags and not of keywords."""
    _reworded.append(how)
    try:
        yield
    finally:
        _reworded.pop()


def notice(text: str) -> None:
    for how in _reworded:
        text = how(text)
    tell_wrapped(f"mlx_vlgen: {text}")


def tell_wrapped(text: str) -> None:
    """Print on stderr; on a terminal, with lines broken between words."""
    if on_terminal():
        width = int(os.environ.get("COLUMNS") or os.get_terminal_size(sys.stderr.fileno()).columns)
        fill = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False).fill
        text = "\n".join(map(fill, text.split("\n")))
    tell(text)


def tell(text: str, end: str = "\n") -> None:
    """Print on stderr; where it is closed, nobody is told: print would take stdout instead."""
    if sys.stderr is not None:
        print(text, end=end, file=sys.stderr, flush=True)


def on_terminal() -> bool:
    """Whether a person reads stderr as it comes."""
    return sys.stderr is not None and sys.stderr.isatty()


def progress_bar(doing: str, unit: str, total: int | None = None) -> Any | None:
    """A bar, where a person waits at a terminal for more than a second."""
    if not on_terminal():
        return None
    from huggingface_hub.utils import tqdm

    return tqdm(desc=doing, unit=f" {unit}s", total=total, leave=False, delay=1.0)
