"""Media in prompts, and a cache of them for prompts that hold the same ones again."""

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

import numpy as np

from .kinds import Kind
from .prompt import Media, Normalization, Span


@dataclass(frozen=True)
class Expansion:
    """A medium in a prompt. text: replaces the placeholder; the feature token stands in it once for each
    feature, in runs of `counts`. The other fields are those of `Media`; key: its key, where that is known.
    sound: of a video, whose features stand in the same text."""

    text: str
    counts: tuple[int, ...]
    pixels: np.ndarray
    grid: tuple[int, ...]
    size: tuple[int, int]
    seconds: float = 0.0
    normalization: Normalization | None = None
    key: str | None = None
    sound: "Expansion | None" = None

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes + len(self.text) + (self.sound.nbytes if self.sound else 0)

    def media(self, kind: Kind, spans: tuple[Span, ...]) -> Media:
        media = Media(kind, self.pixels, self.grid, spans, self.size, self.seconds, self.normalization)
        if self.key is not None:
            media.__dict__["key"] = self.key
        return media


class Expansions:
    """Expansions by what they are made of. One may serve several processors and threads.

    max_bytes, max_entries: how much it holds at most; what was used least recently goes first.
    """

    def __init__(self, max_bytes: int, max_entries: int = sys.maxsize):
        self.max_bytes, self.max_entries = max_bytes, max_entries
        self.nbytes = 0
        self._entries: OrderedDict[Hashable, Expansion] = OrderedDict()  # least recently used first
        self._making: WeakValueDictionary[Hashable, threading.Lock] = WeakValueDictionary()
        self._lock = threading.Lock()

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self.nbytes = 0

    def get(self, key: Hashable, make: Callable[[], Expansion]) -> Expansion:
        """What is stored as `key`, else what `make` returns. Threads that want the same at once wait for the first of
        them; where it fails, the next one tries, and has its error."""
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:  # a Condition is Python code, in which Ctrl-C would leave it locked
            with self._lock:
                if known := self._entries.get(key):
                    self._entries.move_to_end(key)
                    return known
            made = make()
            return self._set(key, made) if made.nbytes <= self.max_bytes else made

    def _set(self, key: Hashable, made: Expansion) -> Expansion:
        pixels = np.array(made.pixels)  # they may be a small part of a larger array
        pixels.flags.writeable = False  # prompts share them
        made = replace(made, pixels=pixels)
        size = made.nbytes
        with self._lock:
            self._entries[key] = made
            self.nbytes += size
            while self.nbytes > self.max_bytes or len(self._entries) > self.max_entries:
                oldest = next(iter(self._entries))
                size = self._entries[oldest].nbytes
                del self._entries[oldest]  # no call, in which Ctrl-C may come, parts this from its count
                self.nbytes -= size
        return made
