"""The ranks of one model: rank 0 decides, and the others compute their parts of what it computes.

Rank 0 runs the engine as if it were alone. A `CacheLog` among the caches of some rows notes each operation on them, and
every forward sends the notes and its inputs to the other ranks (`follow`), which hold the same caches of their heads.
So nothing that clocks, users or memory decide can make ranks diverge: they are told what came of it.

All goes through MLX's group, in one order: of a forward the header, its arrays, the sums of the layers, the logits.
"""

import json
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from .._runtime import mx
from ..engine import cache as kv
from ..engine.kv_settings import KVSettings
from ..engine.states import StateCache
from ..errors import UnsupportedError
from ..loading.loader import load
from ..models.base import Embedded, Followed, LayerKind, Model
from ..models.text import Driver, unwrapped
from .shard import Group, parameters, shard

HEADER = 1024
"""Bytes of a header that go in one sum; what is longer takes another one."""


class RankError(SystemExit):
    """A forward that failed on some rank: the others stand in it, and nothing more can be computed together. It is no
    fault of a row's, and so no `Exception`: it ends the process, as Ctrl-C does, and no row is answered with it."""


def load_part(path: str | Path, group: Group, **options: Any) -> tuple[Model, Any]:
    """`load`, but only what this rank computes with. On rank 0 the model is used as any other, until `dismiss`; on the
    others `follow` runs it."""
    if options.get("adapter_path") is not None:
        raise UnsupportedError(f"adapter_path={options['adapter_path']!s:.80}: adapters are not cut yet; use one rank")
    model, processor = load(path, lazy=True, **options)
    shard(model, group)
    for tensor in parameters(model, group):  # one at a time, see `load`
        mx.eval(tensor)
    if group.rank() == 0:
        kind: Any = type(model)
        model.__class__ = type(kind.__name__, (Leading, kind), {"__module__": kind.__module__})
        model._link = Link(group)
    return model, processor


class Link:
    """What rank 0 says to the others. notes: operations on caches since the last forward, in order."""

    def __init__(self, group: Group):
        self._group = group
        self.notes: deque[list[Any]] = deque()
        self.numbers = count()
        self.broken = False
        self.lock = threading.Lock()
        self._thread = 0
        self._last: mx.array | None = None

    def begin(self) -> None:
        """Before a forward. Each thread has a stream, and sums of two of them would mix: another's are waited for."""
        if self._thread != threading.get_ident() and self._last is not None:
            mx.eval(self._last)
        self._thread = threading.get_ident()

    def launch(self, logits: mx.array) -> None:
        """All of a forward, whatever becomes of it: the other ranks add to each of its sums."""
        mx.async_eval(logits)
        if mx.default_device().type == mx.DeviceType.cpu:
            mx.eval(logits)  # nothing starts ahead there, and a lost rank is known here and not where a row is read
        self._last = logits

    def send(self, **message: Any) -> None:
        """On rank 0: a message, after the notes."""
        notes = [self.notes.popleft() for _ in range(len(self.notes))]
        data = json.dumps(message | {"notes": notes}).encode()
        size = len(data).to_bytes(4, "little")
        self._send(size + data[: HEADER - 4], HEADER)
        if len(data) > HEADER - 4:
            self._send(data[HEADER - 4 :], len(data) - HEADER + 4)

    def _send(self, data: bytes, size: int) -> None:
        self.share(mx.array(np.frombuffer(data.ljust(size, b"\0"), dtype=np.uint8)))

    def receive(self) -> dict[str, Any]:
        """On the others: the next message, once it comes."""
        data = self._receive(HEADER)
        size, data = int.from_bytes(data[:4], "little"), data[4:]
        if size > len(data):
            data += self._receive(size - len(data))
        message: dict[str, Any] = json.loads(data[:size])
        return message

    def _receive(self, size: int) -> bytes:
        data = self.share(mx.zeros(size, mx.uint8))
        mx.eval(data)  # which lets this process's other threads run, however long it waits
        return np.array(data).tobytes()

    def share(self, array: mx.array) -> mx.array:
        """Rank 0's array, where the others give zeros. It is under way: the order of sums is that of these calls."""
        shared = mx.distributed.all_sum(array, group=self._group)
        mx.async_eval(shared)
        return shared


class CacheLog(StateCache):
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

    def extend(self, other: Any) -> None:
        self._note("extend", other.number)

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


def _ints(values: Sequence[int] | None) -> list[int] | None:
    return None if values is None else [int(value) for value in values]


class Leading(Model):
    """What rank 0's model does beside its family: it has the other ranks compute the same."""

    _link: Link
    driver: Driver

    def cache_layout(self) -> list[LayerKind]:
        link = self._link
        return [*super().cache_layout(), Followed(lambda *arguments: CacheLog.make(link, *arguments))]

    def forward(self, inputs: Embedded, cache: Sequence[Any], at: mx.array | None = None) -> mx.array:
        link, log = self._link, cache[-1]
        if link.broken:
            raise RankError("mlx_vlgen: error: an earlier forward failed on one rank, so that the ranks cannot go on")
        if inputs.capture is not None:
            raise UnsupportedError("hidden states and attention weights: no rank has all of them; use one rank")
        embeds = inputs.embeds
        if embeds is None:  # as `Driver.hidden_states` does it; a family's `embed_tokens` may be for prompts only
            embeds = self.driver.embed(unwrapped(self.text_decoder()), inputs.tokens)
        arrays = [embeds, inputs.positions, inputs.two_way, *inputs.deepstack]
        header = {
            "cache": log.number,
            "at": None if at is None else np.array(at).tolist(),
            "delta": inputs.delta if isinstance(inputs.delta, int | float) else np.array(inputs.delta).tolist(),
            "arrays": [None if array is None else [array.shape, _name(array.dtype)] for array in arrays],
        }
        with link.lock:
            try:
                link.begin()
                link.send(**header)
                shared = [None if array is None else link.share(array) for array in arrays]
                logits = super().forward(_embedded(shared, inputs.tokens, inputs.delta), cache[:-1], at)
                link.launch(logits)
            except BaseException as error:
                link.broken = True
                if not isinstance(error, Exception):
                    raise
                raise RankError(f"mlx_vlgen: error: a forward failed on rank 0: {error}") from error
        return logits


def dismiss(model: Model) -> None:
    """End the other ranks' `follow`. The model computes nothing any more."""
    link: Link = model._link
    with link.lock:
        if not link.broken:
            link.begin()
            link.send(end=True)
            mx.synchronize()
        link.broken = True


def follow(model: Model, group: Group) -> None:
    """Compute this rank's part of all that rank 0 computes, until it says that this was all."""
    link, caches = Link(group), dict[int, kv.Cache]()
    layout = model.cache_layout()
    while True:
        message = link.receive()
        for operation, number, *arguments in message["notes"]:
            _repeat(caches, layout, operation, number, arguments)
        if message.get("end"):
            return
        arrays: list[Any] = [
            None if array is None else link.share(mx.zeros(array[0], getattr(mx, array[1])))
            for array in message["arrays"]
        ]
        delta, at = message["delta"], message["at"]
        tokens = mx.zeros(arrays[0].shape[:2], mx.int32)
        inputs = _embedded(arrays, tokens, mx.array(delta) if isinstance(delta, list) else delta)
        cache = caches[message["cache"]]
        kv.evaluate(cache, model.forward(inputs, cache, None if at is None else mx.array(at)))


def _repeat(
    caches: dict[int, kv.Cache], layout: Sequence[LayerKind], operation: str, number: int, arguments: list[Any]
) -> None:
    match operation, arguments:
        case "make", [settings, padded, expected, begun, prompts]:
            caches[number] = kv.make_cache(layout, KVSettings(**settings), padded, expected, begun, prompts)
        case "extend", [other]:
            kv.join(caches[number], caches[other], 0)
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
        case "drop", []:
            caches.pop(number, None)


def _embedded(arrays: Sequence[Any], tokens: mx.array, delta: float | mx.array) -> Embedded:
    """What the ranks compute with. arrays: embeds, positions, two_way and the deepstack layers. tokens: zeros but on
    rank 0, for nobody reads them beside the embeddings."""
    embeds, positions, two_way, *deepstack = arrays
    return Embedded(tokens, embeds, positions, delta, deepstack, two_way)


def _name(dtype: mx.Dtype) -> str:
    return str(dtype).rpartition(".")[2]
