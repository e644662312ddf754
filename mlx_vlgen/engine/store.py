"""Keys and values of prompts and answers, kept for what begins with the same."""

import secrets
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .._runtime import memory_available, mx
from ..inputs.expansions import Expansions
from ..inputs.prompt import Media, Prompt
from ..models.base import Features, Full, LayerKind, Model, Opaque
from . import cache as kv
from .columns import Run
from .kv_settings import KVSettings
from .prefix import BLOCK, LEAST, Units, agreement, block_keys, covers, cut_back
from .scheduling import is_out_of_memory
from .states import StateCache

MEMORY_SHARE = 0.25
"""Of the memory that is free without it, what a cache takes where nothing says how much."""

MEDIA_SHARE, MEDIA_BYTES = 0.125, 512 << 20
"""Of a cache, what its processed media take at most, and in bytes."""


@dataclass(eq=False)
class Block:
    """Neighbouring positions of a prompt or answer, after those of the block `parent`.

    runs: each layer's keys and values; a sliding layer has only what the last tokens of the stored row attended to.
    states: of each recurrent layer (1, …) after the last position, where they are known.
    """

    key: bytes
    parent: bytes
    units: Units
    runs: list[list[Run]]
    states: dict[int, list[mx.array]]

    @property
    def arrays(self) -> list[mx.array]:
        keys_values = [part for layer in self.runs for run in layer for part in run.parts]
        return [*keys_values, *(state for states in self.states.values() for state in states)]

    @cached_property
    def nbytes(self) -> int:
        return int(self.units.nbytes) + sum(array.nbytes for array in self.arrays)


@dataclass(eq=False)
class Picture:
    """What a vision tower gave for a picture or video."""

    features: Features

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (self.features.embeds, *self.features.deepstack))


@dataclass(eq=False)
class Prefix:
    """Keys and values that a row begins with. key: equal ones are equal; delta: how far the rotary positions are ahead
    of `length`."""

    key: bytes
    blocks: Sequence[Block]
    length: int
    delta: int

    def begin(self, cache: kv.Cache) -> kv.Cache:
        """`cache`, which is empty, with these positions in each of its rows."""
        for index, layer in enumerate(cache):
            if isinstance(layer, StateCache):
                layer.restore(self.blocks[-1].states[index])
            else:
                layer.restore([run for block in self.blocks for run in block.runs[index]], self.length)
        return cache


class PrefixCache:
    """What prompts and answers have in common with later ones, and need not be computed again: keys and values of
    their first positions, pictures and videos as they were processed, and features of these. Give one object to all
    calls that may share: it may serve several models and threads.

    max_bytes: how much it holds at most, what was used least recently goes first; default None, a quarter of the memory
    that is free. ValueError for less than 0.
    """

    def __init__(self, max_bytes: int | None = None):
        if max_bytes is not None and max_bytes < 0:
            raise ValueError(f"max_bytes={max_bytes}: expected 0 or more, or None for a part of the free memory")
        self._max_bytes = max_bytes
        self._lock = threading.RLock()
        self._models: list[tuple[weakref.ref[Model], bytes]] = []  # each with the key of its first blocks
        self._entries: OrderedDict[bytes, Block | Picture] = OrderedDict()  # least recently used first
        self._following: dict[bytes, dict[bytes, Block]] = {}  # blocks by that of their parent
        self.nbytes = 0  # of all blocks
        self.expansions = Expansions(min(MEDIA_BYTES, int(MEDIA_SHARE * self._limit())))  # media as they were processed
        self.version = 0  # changes when something is stored

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._following.clear()
            self.nbytes = 0
            self.expansions.clear()

    def of(self, model: Model) -> "Prefixes | None":
        """What belongs to one loaded model. None where its caches cannot be read."""
        layout = model.cache_layout()
        if any(isinstance(kind, Opaque) for kind in layout):
            return None
        with self._lock:
            self._models = [(known, root) for known, root in self._models if known() is not None]
            root = next((root for known, root in self._models if known() is model), None)
            if root is None:
                root = secrets.token_bytes(16)
                self._models.append((weakref.ref(model), root))
        return Prefixes(self, model, root, layout)

    def candidates(self, root: bytes, units: Units) -> list[tuple[int, list[Block]]]:
        """Chains of blocks whose first positions are these, and how many; the longest first."""
        found: list[tuple[int, list[Block]]] = []
        chain: list[Block] = []
        with self._lock:
            for start, key in zip(range(0, len(units), BLOCK), block_keys(root, units), strict=True):
                following = self._following.get(chain[-1].key if chain else root, {})
                for block in following.values():
                    if count := agreement(block.units, units[start : start + BLOCK]):
                        found.append((start + count, [*chain, block]))
                if (known := following.get(key)) is None:
                    break
                chain.append(known)
        return sorted(found, key=lambda item: -item[0])

    def touch(self, blocks: Sequence[Block]) -> None:
        """They were used. No block goes before those after it."""
        with self._lock:
            for block in reversed(blocks):
                if block.key in self._entries:
                    self._entries.move_to_end(block.key)

    def get(self, key: bytes) -> Block | Picture | None:
        """What is stored as `key`, which is used by that."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def add(self, blocks: Sequence[Block]) -> None:
        """Store a chain of blocks, some perhaps in the place of those with the same key."""
        with self._lock:
            for block in blocks:
                self._set(block.key, block)
                self._following.setdefault(block.parent, {})[block.key] = block
            self.touch(blocks)
            self.version += 1
            self._shrink()

    def add_picture(self, key: bytes, picture: Picture) -> None:
        with self._lock:
            self._set(key, picture)
            self._shrink()

    def _set(self, key: bytes, entry: Block | Picture) -> None:
        known = self._entries.get(key)
        self.nbytes += entry.nbytes - (known.nbytes if known else 0)
        self._entries[key] = entry
        self._entries.move_to_end(key)

    def _shrink(self) -> None:
        limit = self._limit()
        while self.nbytes + self.expansions.nbytes > limit and self._entries:
            key, entry = self._entries.popitem(last=False)
            self.nbytes -= entry.nbytes
            if isinstance(entry, Block):
                siblings = self._following[entry.parent]
                del siblings[key]
                if not siblings:
                    del self._following[entry.parent]

    def _limit(self) -> int:
        if self._max_bytes is not None:
            return self._max_bytes
        return int(MEMORY_SHARE * ((memory_available() or 0) + self.nbytes))


@dataclass(eq=False)
class Prefixes:
    """A `PrefixCache` for one model."""

    cache: PrefixCache
    model: Model
    root: bytes
    layout: Sequence[LayerKind]

    def _root(self, settings: KVSettings) -> bytes:
        return self.root + repr(settings).encode()

    def at_any_length(self, settings: KVSettings) -> bool:
        """Whether any beginning of what is stored can be used: every layer has all positions."""
        return settings.max_size is None and all(isinstance(kind, Full) for kind in self.layout)

    def find(self, prompt: Prompt, units: Units, settings: KVSettings) -> Prefix | None:
        """The longest beginning of a prompt that is known."""
        empty = kv.make_cache(self.layout, settings)
        for count, blocks in self.cache.candidates(self._root(settings), units):
            if count < LEAST:
                break
            length = cut_back(count, prompt)
            blocks = blocks[: -(-length // BLOCK)]
            if length >= LEAST and (self.at_any_length(settings) or _usable(blocks, length, empty)):
                self.cache.touch(blocks)
                delta = self.model.position_delta(prompt.before(length))
                return Prefix(block_keys(self._root(settings), units[:length])[-1], blocks, length, delta)
        return None

    def features(self, medium: Media) -> Features | None:
        """What the vision tower gave for equal pixels."""
        known = self.cache.get(self.root + medium.key.encode())
        return known.features if isinstance(known, Picture) else None

    def store_features(self, media: Sequence[Media], features: Sequence[Features]) -> None:
        """Store what is evaluated, of media that are known by their key."""
        for medium, known in zip(media, features, strict=True):
            if isinstance(medium.identity, str):
                self.cache.add_picture(self.root + medium.key.encode(), Picture(known))

    def store(self, units: Units, settings: KVSettings, cache: kv.Cache, row: int, states: Any = None) -> None:
        """Store a row's first positions, all of which `cache` holds. states: those of its recurrent layers after the
        last of these positions, by layer, where the cache has gone on."""
        blocks = list(self._new_blocks(units, self._root(settings), cache, row, states))
        try:
            mx.eval([block.arrays for block in blocks])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.cache.clear()
            return
        self.cache.add(blocks)

    def _new_blocks(self, units: Units, root: bytes, cache: kv.Cache, row: int, states: Any) -> Iterator[Block]:
        parent = root
        for start, key in zip(range(0, len(units), BLOCK), block_keys(root, units), strict=True):
            part = units[start : start + BLOCK]
            stop, known = start + len(part), self.cache.get(key)
            had = known if isinstance(known, Block) else Block(key, parent, part, [[] for _ in cache], {})
            more, at_end = dict[int, list[Run]](), dict[int, list[mx.array]]()
            for index, layer in enumerate(cache):
                if not isinstance(layer, StateCache):
                    lacks = _count(had.runs[index]) < len(part)
                    if lacks and _count(runs := layer.stored(row, start, stop)) > _count(had.runs[index]):
                        more[index] = runs
                elif stop == len(units) and index not in had.states:
                    arrays = states[index] if states else layer.cache
                    at_end[index] = [array[mx.array([row])] for array in arrays]  # which copies
            runs_now = [more.get(index, runs) for index, runs in enumerate(had.runs)]
            changed = had is not known or more or at_end
            yield Block(key, parent, part, runs_now, had.states | at_end) if changed else had
            parent = key


def _usable(blocks: Sequence[Block], length: int, cache: kv.Cache) -> bool:
    """Whether the blocks have what a token after so many positions needs of every layer of such a cache."""
    end = sum(len(block.units) for block in blocks)
    for index, layer in enumerate(cache):
        if isinstance(layer, StateCache):
            if length != end or index not in blocks[-1].states:
                return False
            continue
        runs = [(run.first, run.size) for block in blocks for run in block.runs[index]]
        if not all(covers(runs, *span) for span in layer.needed(length)):
            return False
    return True


def _count(runs: Sequence[Run]) -> int:
    """Positions in all of them."""
    return sum(run.size for run in runs)
