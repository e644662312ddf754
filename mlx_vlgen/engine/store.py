"""Keys and values of prompts and answers, kept for what begins with the same."""

import hashlib
import os
import secrets
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._runtime import memory_available, mx
from ..errors import UnsupportedError
from ..inputs.expansions import Expansions
from ..inputs.prompt import Media, Prompt
from ..models.base import Features, Followed, Full, LayerKind, Model, Opaque, Whole
from ..notices import notice
from . import cache as kv
from .blocks import Block, FeatureCache
from .columns import Run
from .disk import Disk, identity
from .kv_settings import KVSettings
from .prefix import BLOCK, LEAST, Units, agreement, block_keys, covers, cut_back
from .scheduling import is_out_of_memory
from .states import FollowedCache, StateCache

MEMORY_SHARE = 0.25
"""Of the memory that is free without it, what a cache takes where nothing says how much."""

MEDIA_SHARE, MEDIA_BYTES = 0.125, 512 << 20
"""Of a cache, what processed media take at most, and in bytes; and their features as much again."""

INSIDE_ENTRIES = 4
"""So many of each are held where they only serve rows that are inside together, which mostly do not share any: the
next questions about a picture come soon."""


@dataclass(eq=False)
class Prefix:
    """Keys and values that a row begins with. key: equal ones are equal; delta: how far the rotary positions are ahead
    of `length`."""

    key: bytes
    blocks: Sequence[Block]
    length: int
    delta: float

    def begin(self, cache: kv.Cache) -> kv.Cache:
        """`cache`, which is empty, with these positions in each of its rows."""
        for index, layer in enumerate(cache):
            if isinstance(layer, FollowedCache):
                layer.begin([block.elsewhere for block in self.blocks], self.length)
            elif isinstance(layer, StateCache):
                layer.restore(self.blocks[-1].states[index])
            else:
                layer.restore([run for block in self.blocks for run in block.runs[index]], self.length)
        return cache


def prefixes(reuse: "bool | PrefixCache", model: Model) -> "Prefixes | None":
    """What the rows of one iterator reuse. TypeError for another kind of `reuse`."""
    if isinstance(reuse, PrefixCache):
        return reuse.of(model)
    if not isinstance(reuse, bool):
        raise TypeError(f"reuse={reuse!r:.80}: expected True, False or a PrefixCache")
    if not reuse:
        return None
    cache = PrefixCache()
    cache.expansions.max_entries = cache.features.max_entries = INSIDE_ENTRIES
    return cache.of(model, all_rows=False)


def cache_on_disk(folder: Path | None) -> "PrefixCache":
    """A cache that is in this folder too; in memory only, and said so, where the folder cannot be made."""
    try:
        return PrefixCache(disk=folder)
    except OSError as error:
        notice(f"{folder}: {error.strerror}; what is computed is reused by this process only")
        return PrefixCache()


class PrefixCache:
    """What prompts and answers have in common with later ones, and need not be computed again: keys and values of
    their first positions, media as they were processed, and features of these. Give one object to all
    calls that may share: it may serve several models and threads.

    max_bytes: how much it holds at most, what was used least recently goes first; default None, a quarter of the memory
    that is free. disk: a folder where keys and values go too, for other processes with the same checkpoint; default
    None, none. disk_bytes: how much that holds at most; default None, a quarter of what is free there, and 30 GiB at
    most; nothing is written while less than 10 GiB are free. ValueError for less than 0, and for disk_bytes alone.
    """

    def __init__(
        self,
        max_bytes: int | None = None,
        disk: str | os.PathLike[str] | None = None,
        disk_bytes: int | None = None,
    ):
        for name, value in (("max_bytes", max_bytes), ("disk_bytes", disk_bytes)):
            if value is not None and value < 0:
                raise ValueError(f"{name}={value}: expected 0 or more, or None for a part of what is free")
        if disk_bytes is not None and disk is None:
            raise ValueError(f"disk_bytes={disk_bytes} does nothing without disk: give that too, a folder")
        self._max_bytes = max_bytes
        self._disk = None if disk is None else Disk(disk, disk_bytes)
        self._writer = ThreadPoolExecutor(1, "mlx_vlgen writer")
        if self._disk:
            self._writer.submit(int)  # starts its thread: Ctrl-C there would leave one that the end of Python waits for
        self._lock = threading.RLock()
        self._models: list[tuple[weakref.ref[Model], bytes]] = []  # each with the key of its first blocks
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()  # least recently used first
        self._following: dict[bytes, dict[bytes, Block]] = {}  # blocks by that of their parent
        self._block_bytes = 0
        limit = int(MEMORY_SHARE * (memory_available() or 0)) if max_bytes is None else max_bytes
        for_media = min(MEDIA_BYTES, int(MEDIA_SHARE * limit))
        self.expansions, self.features = Expansions(for_media), FeatureCache(for_media)
        self.version = 0  # changes when something is stored

    @property
    def nbytes(self) -> int:
        """Of all that it holds in memory."""
        return self._block_bytes + self.expansions.nbytes + self.features.nbytes

    def clear(self) -> None:
        """Forget all, on disk too."""
        self.flush()
        with self._lock:
            if self._disk:
                self._disk.clear()
            self._blocks.clear()
            self._following.clear()
            self._block_bytes = 0
            self.expansions.clear()
            self.features.clear()

    @property
    def on_disk(self) -> bool:
        return self._disk is not None

    def flush(self) -> None:
        """Wait until all that was stored is on disk; the end of Python waits, too."""
        if self._disk:
            self._writer.submit(int).result()

    def of(self, model: Model, all_rows: bool = True) -> "Prefixes | None":
        """What belongs to one loaded model. None where its caches cannot be read."""
        layout = model.cache_layout()
        if any(isinstance(kind, Opaque) for kind in layout):
            return None
        if self._disk and any(isinstance(kind, Followed) for kind in layout):
            raise UnsupportedError("disk: of a model on several ranks no process has all; use a PrefixCache without it")
        with self._lock:
            self._models = [(known, root) for known, root in self._models if known() is not None]
            root = next((root for known, root in self._models if known() is model), None)
            if root is None:
                root = identity(model) if self._disk else secrets.token_bytes(16)
                self._models.append((weakref.ref(model), root))
        return Prefixes(self, model, root, layout, all_rows)

    def candidates(self, root: bytes, units: Units, disk: bool) -> list[tuple[int, list[Block]]]:
        """Chains of blocks whose first positions are these, and how many; the longest first. disk: with those on disk,
        whose arrays are not read yet."""
        found: list[tuple[int, list[Block]]] = []
        chain: list[Block] = []
        for start, key in zip(range(0, len(units), BLOCK), block_keys(root, units), strict=True):
            parent, part = chain[-1].key if chain else root, units[start : start + BLOCK]
            with self._lock:
                following = dict(self._following.get(parent, {}))
            if disk and self._disk:
                following |= {block.key: block for block in self._disk.following(parent, {*following}, part)}
            for block in following.values():
                if count := agreement(block.units, part):
                    found.append((start + count, [*chain, block]))
            if (known := following.get(key)) is None:
                break
            chain.append(known)
        return sorted(found, key=lambda item: -item[0])

    def touch(self, blocks: Sequence[Block]) -> None:
        """They were used. No block goes before those after it."""
        with self._lock:
            for block in reversed(blocks):
                if block.key in self._blocks:
                    self._blocks.move_to_end(block.key)

    def load(self, blocks: Sequence[Block]) -> bool:
        """Have a chain that `candidates` found in memory, and say whether that went well."""
        keys = [block.key for block in blocks]
        with self._lock:
            new = [block for block in blocks if block.key not in self._blocks]
        if new and not (self._disk and self._disk.load(new)):
            return False
        with self._lock:  # another thread may have read them meanwhile, or what is before them may be gone
            read = {block.key: block for block in new}
            chain = [block for key in keys if (block := self._blocks.get(key) or read.get(key))]
            if new and len(chain) == len(blocks):
                self._insert(chain)
        return True

    def get(self, key: bytes) -> Block | None:
        with self._lock:
            return self._blocks.get(key)

    def add(self, blocks: Sequence[Block]) -> None:
        """Store a chain of blocks, some perhaps in the place of those with the same key."""
        with self._lock:
            changed = {block.key for block in blocks if self._blocks.get(block.key) is not block}
            self._insert(blocks)
        if self._disk and changed:
            # What nobody expects there is logged, and not lost in the thread.
            self._writer.submit(self._disk.write, blocks, changed).add_done_callback(Future.result)

    def _insert(self, blocks: Sequence[Block]) -> None:
        for block in blocks:
            known = self._blocks.get(block.key)
            more = block.nbytes - (known.nbytes if known else 0)
            siblings = self._following.setdefault(block.parent, {})
            siblings[block.key] = self._blocks[block.key] = block  # no call, in which Ctrl-C may come, parts these
            self._block_bytes += more
        self.touch(blocks)
        self.version += 1
        self._shrink()

    def _shrink(self) -> None:
        limit = self._limit()
        while self.nbytes > limit and self._blocks:
            key = next(iter(self._blocks))
            block = self._blocks[key]
            siblings, size = self._following[block.parent], block.nbytes
            del self._blocks[key], siblings[key]
            self._block_bytes -= size
            if not siblings:
                del self._following[block.parent]

    def _limit(self) -> int:
        if self._max_bytes is not None:
            return self._max_bytes
        return int(MEMORY_SHARE * ((memory_available() or 0) + self.nbytes))


@dataclass(eq=False)
class Prefixes:
    """A `PrefixCache` for one model. all_rows: whether whatever is computed is stored, not only what other rows wait
    for."""

    cache: PrefixCache
    model: Model
    root: bytes
    layout: Sequence[LayerKind]
    all_rows: bool

    def _root(self, settings: KVSettings) -> bytes:
        return hashlib.sha256(self.root + repr(settings).encode()).digest()

    def at_any_length(self, settings: KVSettings) -> bool:
        """Whether any beginning of what is stored can be used: every layer has all positions."""
        return settings.max_size is None and all(isinstance(kind, Full | Whole | Followed) for kind in self.layout)

    def find(self, prompt: Prompt, units: Units, settings: KVSettings) -> Prefix | None:
        """The longest beginning of a prompt that is known, in memory."""
        for length, blocks in self._usable(prompt, units, settings, disk=False):
            self.cache.touch(blocks)
            delta = self.model.position_delta(prompt.before(length))
            return Prefix(block_keys(self._root(settings), units[:length])[-1], blocks, length, delta)
        return None

    def read_ahead(self, prompt: Prompt, units: Units, settings: KVSettings) -> None:
        """Have the longest beginning of a prompt that is known on disk in memory, too: that takes its time."""
        for _, blocks in self._usable(prompt, units, settings, disk=True):
            if self.cache.load(blocks):
                break

    def _usable(
        self, prompt: Prompt, units: Units, settings: KVSettings, disk: bool
    ) -> Iterator[tuple[int, list[Block]]]:
        """How many positions a prompt can begin with, and their blocks; the longest first."""
        empty = kv.make_cache([kind for kind in self.layout if not isinstance(kind, Followed)], settings)
        for count, blocks in self.cache.candidates(self._root(settings), units, disk):
            length = cut_back(count, prompt)
            blocks = blocks[: -(-length // BLOCK)]
            if length >= LEAST and (self.at_any_length(settings) or _usable(blocks, length, empty)):
                yield length, blocks

    def features(self, medium: Media) -> Features | None:
        """What the vision tower gave for equal pixels."""
        return self.cache.features.get(self.root + medium.key.encode())

    def store_features(self, media: Sequence[Media], features: Sequence[Features]) -> None:
        """Store what is evaluated, of media that are known by their key."""
        for medium, known in zip(media, features, strict=True):
            if isinstance(medium.identity, str):
                self.cache.features.add(self.root + medium.key.encode(), known)

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
            had = known or Block(key, parent, part, [[] for _ in cache], {})
            more, at_end = dict[int, list[Run]](), dict[int, list[mx.array]]()
            elsewhere = had.elsewhere
            for index, layer in enumerate(cache):
                if isinstance(layer, FollowedCache):
                    if more or at_end or elsewhere is None:
                        elsewhere = layer.store(row, (start, stop), elsewhere, [*more], [*at_end], states is not None)
                elif not isinstance(layer, StateCache):
                    lacks = _count(had.runs[index]) < len(part)
                    if lacks and _count(runs := layer.stored(row, start, stop)) > _count(had.runs[index]):
                        more[index] = runs
                elif stop == len(units) and index not in had.states:
                    at_end[index] = layer.stored(row, states[index] if states else None)
            runs_now = [more.get(index, runs) for index, runs in enumerate(had.runs)]
            changed = had is not known or more or at_end
            yield Block(key, parent, part, runs_now, had.states | at_end, elsewhere) if changed else had
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
