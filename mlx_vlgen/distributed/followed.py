"""The caches of the rows that run together, on all ranks: rank 0 notes what is done to its, the others repeat it."""

import weakref
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from .._runtime import mx
from ..engine import cache as kv
from ..engine.blocks import Block
from ..engine.kv_settings import KVSettings
from ..engine.prefix import token_units
from ..engine.states import FollowedCache, StateCache
from ..engine.store import Prefix
from ..models.base import LayerKind
from .link import Link


class CacheLog(FollowedCache):
    """Notes what is done to the caches of some rows, which the other ranks know by `number`."""

    def __init__(self, link: Link, number: int):
        super().__init__(0)
        self._link, self.number = link, number
        weakref.finalize(self, link.notes.append, ["drop", number]).atexit = False

    @classmethod
    def make(
        cls,
        link: Link,
        settings: KVSettings,
        padded: Sequence[int] | None,
        expected: int,
        begun: int,
        prompts: Sequence[int] | None,
    ) -> "CacheLog":
        log = cls(link, next(link.numbers))
        log._note("make", asdict(settings), _ints(padded), int(expected), int(begun), _ints(prompts))
        return log

    def _note(self, operation: str, *arguments: Any) -> None:
        self._link.notes.append([operation, self.number, *arguments])

    @property
    def state(self) -> list[mx.array]:
        return []

    @property
    def nbytes(self) -> int:
        return 0

    @property
    def row_bytes(self) -> int:
        return 0

    def finalize(self) -> None:
        self._note("finalize")

    def extend(self, other: Any, most: int | None = None) -> None:
        self._note("extend", other.number, most)

    def select(self, rows: Sequence[int]) -> None:
        self._note("select", _ints(rows))

    def take(self, rows: Sequence[int]) -> Any:
        taken = CacheLog(self._link, next(self._link.numbers))
        self._note("take", _ints(rows), taken.number)
        return taken

    def extract(self, row: int) -> Any:
        alone = CacheLog(self._link, next(self._link.numbers))
        self._note("extract", int(row), alone.number)
        return alone

    def reserve(self, count: int) -> None:
        self._note("reserve", int(count))

    def rollback(self, drop: Sequence[int]) -> None:
        self._note("rollback", _ints(drop))

    def snapshot(self) -> list[mx.array]:
        self._note("snapshot")
        return []

    def store(
        self, row: int, span: tuple[int, int], known: Any, layers: Sequence[int], ends: Sequence[int], earlier: bool
    ) -> "StoredBlock":
        stored = StoredBlock(self._link)
        before = None if known is None else known.number
        self._note("store", stored.number, before, int(row), _ints(span), _ints(layers), _ints(ends), earlier)
        return stored

    def begin(self, blocks: Sequence["StoredBlock"], length: int) -> None:
        self._note("begin", [block.number for block in blocks], int(length))


class StoredBlock:
    """Stands for the block that the other ranks know by `number`, until it is let go."""

    def __init__(self, link: Link):
        self.number = next(link.numbers)
        weakref.finalize(self, link.notes.append, ["forget", self.number]).atexit = False


def _ints(values: Sequence[int] | None) -> list[int] | None:
    return None if values is None else [int(value) for value in values]


class Replica:
    """On the ranks but the first: their parts of the same caches, and of the blocks that are stored for later rows, by
    number. snapshots: the last ones of each cache's recurrent layers."""

    def __init__(self, layout: Sequence[LayerKind]):
        self._layout = layout
        self.caches: dict[int, kv.Cache] = {}
        self._blocks: dict[int, Block] = {}
        self._snapshots: dict[int, list[Any]] = {}

    def repeat(self, operation: str, number: int, *arguments: Any) -> None:
        """What `CacheLog` noted."""
        caches = self.caches
        match operation, arguments:
            case "make", [settings, padded, expected, begun, prompts]:
                caches[number] = kv.make_cache(self._layout, KVSettings(**settings), padded, expected, begun, prompts)
            case "extend", [other, most]:
                kv.join(caches[number], caches[other], 0, most)
            case "select", [rows]:
                kv.select(caches[number], rows)
            case "take", [rows, taken]:
                caches[taken] = kv.take(caches[number], rows)
            case "extract", [row, alone]:
                caches[alone] = kv.alone(caches[number], row)
            case "reserve", [count]:
                kv.reserve(caches[number], count)
            case "rollback", [drop]:
                kv.rollback(caches[number], drop)
            case "finalize", []:
                kv.finalize(caches[number])
            case "snapshot", []:
                layers = caches[number]
                self._snapshots[number] = [
                    layer.snapshot() if isinstance(layer, StateCache) else None for layer in layers
                ]
            case "store", [stored, *what]:
                self._blocks[stored] = self._stored(number, *what)
            case "begin", [blocks, length]:
                Prefix(b"", [self._blocks[block] for block in blocks], length, 0).begin(caches[number])
            case "forget", []:
                self._blocks.pop(number, None)
            case "drop", []:
                caches.pop(number, None)
                self._snapshots.pop(number, None)

    def _stored(
        self,
        number: int,
        known: int | None,
        row: int,
        span: tuple[int, int],
        layers: Sequence[int],
        ends: Sequence[int],
        earlier: bool,
    ) -> Block:
        cache, snapshots = self.caches[number], self._snapshots.get(number)
        before = Block(b"", b"", token_units([]), [[] for _ in cache], {}) if known is None else self._blocks[known]
        runs, states = list(before.runs), dict(before.states)
        for index in layers:
            runs[index] = cache[index].stored(row, *span)
        for index in ends:
            states[index] = cache[index].stored(row, snapshots[index] if earlier and snapshots else None)
        block = Block(b"", b"", before.units, runs, states)
        mx.eval(block.arrays)
        return block
