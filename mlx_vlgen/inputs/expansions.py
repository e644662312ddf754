"""Images and videos in prompts, and a cache of them for prompts that hold the same ones again."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

import numpy as np

from .prompt import Kind, Media, Normalization, Span


@dataclass(frozen=True)
class Expansion:
    """An image or video in a prompt. text: replaces the placeholder; the feature token stands in it once for each
    feature, in runs of `counts`. The other fields are those of `Media`; key: its key, where that is known."""

    text: str
    counts: tuple[int, ...]
    pixels: np.ndarray
    grid: tuple[int, ...]
    size: tuple[int, int]
    seconds: float = 0.0
    normalization: Normalization | None = None
    key: str | None = None

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes + len(self.text)

    def media(self, kind: Kind, spans: tuple[Span, ...]) -> Media:
        media = Media(kind, self.pixels, self.grid, spans, self.size, self.seconds, self.normalization)
        if self.key is not None:
            media.__dict__["key"] = self.key
        return media


class Expansions:
    """Expansions by what they are made of. One may serve several processors and threads.

    max_bytes: how much it holds at most; what was used least recently goes first.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._entries: OrderedDict[Hashable, Expansion] = OrderedDict()  # least recently used first
        self._making: set[Hashable] = set()
        self._changed = threading.Condition()

    def clear(self) -> None:
        with self._changed:
            self._entries.clear()
            self.nbytes = 0

    def get(self, key: Hashable, make: Callable[[], Expansion]) -> Expansion:
        """What is stored as `key`, else what `make` returns. Threads that want the same at once wait for the first of
        them; where it fails, the next one tries, and has an error of its own."""
        with self._changed:
            self._changed.wait_for(lambda: key not in self._making)
            if known := self._entries.get(key):
                self._entries.move_to_end(key)
                return known
            self._making.add(key)
        try:
            made = make()
            if made.nbytes <= self.max_bytes:
                made = self._set(key, made)
            return made
        finally:
            with self._changed:
                self._making.remove(key)
                self._changed.notify_all()

    def _set(self, key: Hashable, made: Expansion) -> Expansion:
        pixels = np.array(made.pixels)  # they may be a small part of a larger array
        pixels.flags.writeable = False  # prompts share them
        made = replace(made, pixels=pixels)
        with self._changed:
            self._entries[key] = made
            self.nbytes += made.nbytes
            while self.nbytes > self.max_bytes:
                self.nbytes -= self._entries.popitem(last=False)[1].nbytes
        return made
