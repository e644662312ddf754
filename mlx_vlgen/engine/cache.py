"""KV caches of the rows that run together: how they are created, packed, joined and split.

mlx-lm's cache classes do the storing, one object a layer, and ours where keys are quantized or their number bounded;
here are the operations on all layers of some rows. A single row keeps unbatched caches (an integer offset, no mask
array). Several rows share batched ones, each padded on the left to the longest; rows of unlike length that are
prefilled together are padded on the right, and rolled to the left at the end.
"""

import copy
from collections.abc import Sequence
from typing import Any

from .._mlx_lm import ArraysCache, BatchKVCache, BatchRotatingKVCache, KVCache, RotatingKVCache
from .._runtime import mx
from ..errors import UnsupportedError
from ..models.base import Embedded, Full, LayerKind, Model, Opaque, Recurrent, Sliding
from .bounded import BoundedCache
from .kv_settings import SINKS, KVSettings
from .quantized import QuantizedCache
from .ragged import RaggedCache

Cache = list[Any]
"""One cache object a layer: mlx-lm's or a `RaggedCache`."""


class _BatchKVCache(BatchKVCache):
    """mlx-lm's, without a mask array when no row is padded and each has one token: CUDA's decode kernels take none."""

    unpadded = False

    def shorten(self, longest: int) -> None:
        """Leave out the columns on the left that no row has, where the longest has so many positions."""
        extra = int(self._idx) - longest
        self.keys: mx.array = self.keys[..., extra:, :]
        self.values: mx.array = self.values[..., extra:, :]
        self.left_padding: mx.array = self.left_padding - extra
        self._idx: int = longest

    def make_mask(self, N: int, return_array: bool = False, **kwargs: Any) -> mx.array | None:
        if N == 1 and self.unpadded:
            return None
        return super().make_mask(N, return_array=return_array, **kwargs)


class _BatchRotatingKVCache(BatchRotatingKVCache):
    """mlx-lm's, with a mask for several tokens that is right also while the buffer is a ring: there mlx-lm's hides the
    first token of rows that are shorter than the window."""

    def make_mask(self, N: int, window_size: int | None = None, return_array: bool = False) -> mx.array:
        if N > 1:
            self._temporal_order()  # which the update does anyway
        return super().make_mask(N, window_size=window_size, return_array=return_array)


def make_cache(layout: Sequence[LayerKind], settings: KVSettings = KVSettings()) -> Cache:
    """Empty caches for one row."""

    def one(kind: LayerKind) -> Any:
        match kind:
            case Full():
                return _ragged(settings, rows=1) or KVCache()
            case Sliding(window):
                return RotatingKVCache(max_size=window)
            case Recurrent(size):
                return ArraysCache(size=size)
            case Opaque(make):
                return make()

    return [one(kind) for kind in layout]


def _ragged(settings: KVSettings, rows: int) -> RaggedCache | None:
    """Ours, where the settings ask for one."""
    if settings.bits is not None:
        return QuantizedCache(settings, rows)
    return BoundedCache(settings, rows) if settings.max_size is not None else None


def unquantized(layout: Sequence[LayerKind], settings: KVSettings) -> list[LayerKind]:
    """The layers, in order, whose caches are left whole although `kv_bits` is given: sliding, recurrent and opaque
    ones. Empty without `kv_bits`."""
    return [kind for kind in layout if settings.bits is not None and not isinstance(kind, Full)]


def check(model: Model, settings: KVSettings) -> None:
    """UnsupportedError where this model cannot honour these settings. Computes nothing: it builds the graphs of three
    short forwards over such caches, a few milliseconds, and drops them; layers say there what does not fit."""
    layout = model.cache_layout()
    if settings == KVSettings():
        return
    named = f"kv_bits={settings.bits}" if settings.bits else f"max_kv_size={settings.max_size}"
    if settings.bits is not None and not any(isinstance(kind, Full) for kind in layout):
        raise UnsupportedError(f"{named}: no layer of this model has a cache that can be quantized; leave it out")
    if settings.max_size is not None and any(isinstance(kind, Opaque) for kind in layout):
        raise UnsupportedError(f"{named}: this model has a kind of cache of its own, which has no bound; leave it out")
    smallest = settings if settings.bits else KVSettings(max_size=SINKS + 1)
    cache = make_cache(layout, smallest)
    try:
        for count in (2 * SINKS, 2 * SINKS, 1):  # what is pushed out in the second would be missed
            model(Embedded(mx.zeros((1, count), dtype=mx.int32)), cache, at=mx.array([0]))
    except UnsupportedError:
        raise
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise UnsupportedError(f"{named}: this model's attention cannot use such a cache; leave it out") from error


def can_batch(layout: Sequence[LayerKind]) -> bool:
    """Whether rows of this model can run together."""
    return not any(isinstance(kind, Opaque) for kind in layout)


def make_pack(layout: Sequence[LayerKind], lengths: Sequence[int], settings: KVSettings = KVSettings()) -> Cache:
    """Empty caches for rows of these lengths that will be prefilled in one forward, padded on the right."""
    padding = [max(lengths) - length for length in lengths]

    def one(kind: LayerKind) -> Any:
        match kind:
            case Full():
                cache = _ragged(settings, len(lengths)) or _BatchKVCache([0] * len(lengths))
            case Sliding(window):
                cache = _BatchRotatingKVCache(window, [0] * len(lengths))
            case Recurrent(size):
                cache = ArraysCache(size=size, left_padding=[0] * len(lengths))
            case Opaque():
                raise ValueError("rows of this model cannot be prefilled together")
        cache.prepare(lengths=list(lengths), right_padding=padding)
        return cache

    return [one(kind) for kind in layout]


def finalize(pack: Cache, lengths: Sequence[int]) -> None:
    """After the forward: roll the padding to the left."""
    for cache in pack:
        cache.finalize()
    _note_padding(pack, lengths)


def join(first: Cache, second: Cache, lengths: Sequence[int]) -> Cache:
    """The rows of `first`, then those of `second`; both stay as they are. lengths: positions of each row of the
    result."""
    joined = [copy.copy(_batched(a)) for a in first]
    for layer, other in zip(joined, second, strict=True):
        layer.extend(_batched(other))
    _note_padding(joined, lengths)
    return joined


def select(cache: Cache, rows: Sequence[int], lengths: Sequence[int]) -> Cache:
    """Only these rows of a batched cache, in this order; unbatched when there is one."""
    if len(rows) == 1:
        return [layer.extract(rows[0]) for layer in cache]
    index = mx.array(list(rows))
    for layer in cache:
        layer.filter(index)
    _note_padding(cache, lengths)
    return cache


def alone(cache: Cache, row: int) -> Cache:
    """One row of a cache, unbatched; the cache stays as it is."""

    def extract(layer: Any) -> Any:
        if isinstance(layer, KVCache | RotatingKVCache):
            apart = copy.copy(layer)  # MLX writes into an array object: two caches must not share one
            apart.keys, apart.values = layer.keys[...], layer.values[...]
            return apart
        return layer.extract(row)

    return [extract(layer) for layer in cache]


def take(cache: Cache, rows: Sequence[int], lengths: Sequence[int]) -> Cache:
    """These rows, in this order, some more than once; batched, and apart from `cache`, which stays as it is."""
    index = mx.array(list(rows))
    selected = [copy.copy(_batched(layer)) for layer in cache]
    for layer in selected:
        layer.filter(index)
    _note_padding(selected, lengths)
    return selected


def rollback(cache: Cache, drop: Sequence[int], lengths: Sequence[int]) -> None:
    """Forget the last drop[b] positions of each row, which were the end of one forward on more than max(drop) tokens
    a row. lengths: positions that each row then holds. Recurrent layers cannot: `can_roll_back`."""
    if max(drop) == 0:
        return
    shared = min(drop)
    more = [count - shared for count in drop]
    for layer in cache:
        if isinstance(layer, RaggedCache):
            layer.rollback(drop)
            continue
        if isinstance(layer, RotatingKVCache | BatchRotatingKVCache):
            # After several tokens it is in order, and still holds what the dropped ones would push out.
            end = layer.keys.shape[2] - shared
            layer.keys, layer.values = layer.keys[..., :end, :], layer.values[..., :end, :]
        layer.trim(shared)
        if max(more) and isinstance(layer, BatchRotatingKVCache):
            layer.prepare(lengths=[-extra for extra in more], right_padding=more)
            layer.finalize()
        elif max(more):
            layer.prepare(right_padding=more)
            layer.finalize()
            layer.shorten(max(lengths))
    _note_padding(cache, lengths)


def can_roll_back(layout: Sequence[LayerKind], settings: KVSettings) -> bool:
    """Whether positions can be taken back from such caches: not from states, nor from a bound, which has pushed out
    what would come back."""
    return settings.max_size is None and all(isinstance(kind, Full | Sliding) for kind in layout)


def evaluate(cache: Cache, *more: mx.array) -> None:
    mx.eval([layer.state for layer in cache], *more)


def _batched(cache: Any) -> Any:
    """A layer's cache as one of a batch. Recurrent layers' and ours are of one class, alone and in a batch."""
    if type(cache) is KVCache:
        return _BatchKVCache.merge([cache])
    if type(cache) is RotatingKVCache:
        return _BatchRotatingKVCache.merge([cache])
    return cache


def _note_padding(cache: Cache, lengths: Sequence[int]) -> None:
    for layer in cache:
        if isinstance(layer, _BatchKVCache):
            layer.unpadded = len(set(lengths)) == 1
