"""What a `PrefixCache` holds: blocks of keys and values, and features of pictures."""

import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .._runtime import mx
from ..models.base import Features
from .columns import Run
from .prefix import Units


@dataclass(eq=False)
class Block:
    """Neighbouring positions of a prompt or answer, after those of the block `parent`.

    runs: each layer's keys and values; a sliding layer has only what the last tokens of the stored row attended to.
    states: of each recurrent layer (1, …) after the last position, where they are known.
    elsewhere: what stands for other ranks' parts of it.
    """

    key: bytes
    parent: bytes
    units: Units
    runs: list[list[Run]]
    states: dict[int, list[mx.array]]
    elsewhere: Any = None

    @property
    def arrays(self) -> list[mx.array]:
        keys_values = [part for layer in self.runs for run in layer for part in run.parts]
        return [*keys_values, *(state for states in self.states.values() for state in states)]

    @cached_property
    def nbytes(self) -> int:
        return int(self.units.nbytes) + sum(array.nbytes for array in self.arrays)


class FeatureCache:
    """What a tower gave for media, by key. max_bytes, max_entries: how much it holds at most; what
    was used least recently goes first."""

    def __init__(self, max_bytes: int, max_entries: int = sys.maxsize):
        self.max_bytes, self.max_entries = max_bytes, max_entries
        self.nbytes = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, Features] = OrderedDict()  # least recently used first

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self.nbytes = 0

    def get(self, key: bytes) -> Features | None:
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def add(self, key: bytes, features: Features) -> None:
        size = _size(features)
        with self._lock:
            if key in self._entries or size > self.max_bytes:
                return
            self._entries[key] = features
            self.nbytes += size
            while self.nbytes > self.max_bytes or len(self._entries) > self.max_entries:
                oldest = next(iter(self._entries))
                size = _size(self._entries[oldest])
                del self._entries[oldest]  # no call, in which Ctrl-C may come, parts this from its count
                self.nbytes -= size


def _size(features: Features) -> int:
    return sum(array.nbytes for array in (features.embeds, *features.deepstack))
