"""KV caches of the rows that run together: how they are created, packed, joined and split.

One object a layer: an `AttentionCache`, which is quantized where that is asked for, or a `StateCache`; here are the
operations on all layers of some rows. Rows join and leave between steps: MLX copies a whole buffer that is written
while something unfinished refers to it.
"""

from collections.abc import Collection, Sequence
from typing import Any

from .._runtime import mx
from ..errors import UnsupportedError
from ..models.base import (
    CrossAttention,
    Embedded,
    Followed,
    Full,
    LayerKind,
    Model,
    Opaque,
    PromptWindow,
    Recurrent,
    Sliding,
    Whole,
)
from ..models.building import building_only
from .kv_settings import SINKS, KVSettings
from .quantized import QuantizedCache
from .slots import AttentionCache, Reach
from .states import CrossCache, StateCache

Cache = list[Any]
"""One cache object a layer: ours, or what an `Opaque` layer makes."""


def make_cache(
    layout: Sequence[LayerKind],
    settings: KVSettings = KVSettings(),
    padded: Sequence[int] | None = None,
    expected: int = 0,
    begun: int = 0,
    prompts: Sequence[int] | None = None,
) -> Cache:
    """Empty caches for one row. padded: for rows of these lengths, which will be prefilled in one forward, padded on
    the right, and `finalize` called after it; begun: without their first positions, so many, which `restore` gives
    before. expected: positions that rows will probably come to. prompts: the lengths of the rows' prompts; by default
    all is prompt."""

    def one(kind: LayerKind) -> Any:
        match kind:
            case Full() if settings.bits is not None:
                return QuantizedCache(settings, padded, expected)
            case Full() if settings.max_size is not None:
                return AttentionCache(Reach(SINKS, settings.max_size - SINKS), padded, expected)
            case Full() | Whole():
                return AttentionCache(padded=padded, expected=expected)
            case Sliding(window, chunked):
                return AttentionCache(Reach(window=window, chunked=chunked), padded, expected)
            case PromptWindow(window):
                return AttentionCache(Reach(after_prompt=window), padded, expected, prompts)
            case Recurrent(size):
                return StateCache(size, padded and [length - begun for length in padded])
            case CrossAttention():
                return CrossCache(1 if padded is None else len(padded))
            case Followed(make):
                return make(settings, padded, expected, begun, prompts)
            case Opaque(make):
                if padded is not None:
                    raise ValueError("rows of this model cannot be prefilled together")
                return make()

    return [one(kind) for kind in layout]


def unquantized(layout: Sequence[LayerKind], settings: KVSettings) -> list[LayerKind]:
    """The layers, in order, whose caches are left whole although `kv_bits` is given: all but those that attend to
    all positions. Empty without `kv_bits`."""
    return [kind for kind in layout if settings.bits is not None and not isinstance(kind, Full | Followed)]


def check(model: Model, settings: KVSettings) -> None:
    """UnsupportedError where this model cannot honour these settings. Computes nothing: it builds the graphs of three
    short forwards over such caches, a few milliseconds, and drops them; layers say there what does not fit."""
    layout = model.cache_layout()
    if settings == KVSettings():
        return
    named = f"kv_bits={settings.bits}" if settings.bits else f"max_kv_size={settings.max_size}"
    if settings.bits is not None and not any(isinstance(kind, Full) for kind in layout):
        raise UnsupportedError(f"{named}: no layer of this model has a cache that can be quantized; leave it out")
    if settings.max_size is not None and any(isinstance(kind, Opaque | PromptWindow | Whole) for kind in layout):
        raise UnsupportedError(f"{named}: this model has a special kind of cache, which has no bound; leave it out")
    smallest = settings if settings.bits else KVSettings(max_size=SINKS + 1)
    cache = make_cache(layout, smallest)
    try:
        with building_only():
            for count in (2 * SINKS, 2 * SINKS, 1):  # what is pushed out in the second would be missed
                model(Embedded(mx.zeros((1, count), dtype=mx.int32)), cache, at=mx.array([0]))
    except UnsupportedError:
        raise
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise UnsupportedError(f"{named}: this model's attention cannot use such a cache; leave it out") from error


def can_batch(layout: Sequence[LayerKind]) -> bool:
    """Whether rows of this model can run together."""
    return not any(isinstance(kind, Opaque) for kind in layout)


def finalize(cache: Cache) -> None:
    """After the forward on padded rows."""
    for layer in cache:
        layer.finalize()


def join(cache: Cache, other: Cache, rows: int, most: int | None = None) -> None:
    """Add the rows of `other` to the `rows` of `cache`. `other` is not needed any more. Where memory does not suffice,
    the error leaves `cache` with the rows that it had. most: rows that may come to be there together, if that is known:
    no room is made for others."""
    mx.eval([layer.state for layer in cache])
    try:
        for layer, arriving in zip(cache, other, strict=True):
            layer.extend(arriving, most)
        evaluate(cache)
    except BaseException:
        select(cache, range(rows))
        raise


def compacted(rows: Collection[int]) -> list[int]:
    """Rows that stay, in the order that they then have: the last ones take the places of those that leave."""
    beyond = iter(sorted(row for row in rows if row >= len(rows)))
    return [slot if slot in rows else next(beyond) for slot in range(len(rows))]


def select(cache: Cache, rows: Sequence[int]) -> None:
    """Keep only these rows, which are in the order of `compacted`."""
    for layer in cache:
        layer.select(rows)


def take(cache: Cache, rows: Sequence[int]) -> Cache:
    """These rows, in this order, some perhaps more than once, apart from `cache`, which stays as it is."""
    return [layer.take(rows) for layer in cache]


def alone(cache: Cache, row: int) -> Cache:
    """One row of a cache, apart from it; the cache stays as it is."""
    return [layer.extract(row) for layer in cache]


def can_roll_back(layout: Sequence[LayerKind], settings: KVSettings) -> bool:
    """Whether positions can be taken back from such caches: not from states, nor from a bound, which has pushed out
    what would come back."""
    kinds = Full | Sliding | PromptWindow | CrossAttention | Whole | Followed
    return settings.max_size is None and all(isinstance(kind, kinds) for kind in layout)


def reserve(cache: Cache, count: int) -> None:
    """Before a forward on at most 1 + count tokens a row, of which `rollback` may take back all but the first."""
    for layer in cache:
        layer.reserve(count)


def rollback(cache: Cache, drop: Sequence[int]) -> None:
    """Forget the last drop[b] positions of each row. Recurrent layers cannot: `can_roll_back`."""
    for layer in cache:
        layer.rollback(drop)


def nbytes(cache: Cache) -> int:
    """Of all that is allocated."""
    return sum(layer.nbytes for layer in cache)


def evaluate(cache: Cache, *more: mx.array) -> None:
    mx.eval([layer.state for layer in cache], *more)
