"""KV caches of the rows that run together: made, packed, joined, and left.

mlx-lm's cache classes do the storing, one object a layer; here are the operations on all layers of some rows.
A single row keeps unbatched caches (an integer offset, no mask array). Several rows share batched ones, each
padded on the left to the longest; rows of unlike length that are prefilled together are padded on the right,
and rolled to the left at the end.
"""

from collections.abc import Callable, Sequence
from typing import Any

from .._mlx_lm import ArraysCache, BatchKVCache, BatchRotatingKVCache, KVCache, RotatingKVCache
from .._runtime import mx
from ..models.base import Full, LayerKind, Opaque, Recurrent, Sliding

Cache = list[Any]
"""One mlx-lm cache object a layer."""


class _BatchKVCache(BatchKVCache):
    """mlx-lm's, without a mask array when no row is padded and each has one token: CUDA's decode kernels take none."""

    unpadded = False

    def make_mask(self, N: int, return_array: bool = False, **kwargs: Any) -> mx.array | None:
        if N == 1 and self.unpadded:
            return None
        return super().make_mask(N, return_array=return_array, **kwargs)


def make_cache(layout: Sequence[LayerKind]) -> Cache:
    """Empty caches for one row."""

    def one(kind: LayerKind) -> Any:
        match kind:
            case Full():
                return KVCache()
            case Sliding(window):
                return RotatingKVCache(max_size=window)
            case Recurrent(size):
                return ArraysCache(size=size)
            case Opaque(make):
                return make()

    return [one(kind) for kind in layout]


def can_batch(layout: Sequence[LayerKind]) -> bool:
    """Whether rows of this model can run together."""
    return not any(isinstance(kind, Opaque) for kind in layout)


def make_pack(layout: Sequence[LayerKind], lengths: Sequence[int]) -> Cache:
    """Empty caches for rows of these lengths that will be prefilled in one forward, padded on the right."""
    padding = [max(lengths) - length for length in lengths]

    def one(kind: LayerKind) -> Any:
        match kind:
            case Full():
                cache = _BatchKVCache([0] * len(lengths))
            case Sliding(window):
                cache = BatchRotatingKVCache(window, [0] * len(lengths))
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
    """The rows of `first`, then those of `second`. lengths: positions held for each row of the result."""
    joined = [_batched(a) for a in first]
    for own, other in zip(joined, second, strict=True):
        own.extend(_batched(other))
    _note_padding(joined, lengths)
    return joined


def select(cache: Cache, rows: Sequence[int], lengths: Sequence[int]) -> Cache:
    """Only these rows of a batched cache, in this order; unbatched when there is one."""
    if len(rows) == 1:
        return [own.extract(rows[0]) for own in cache]
    index = mx.array(list(rows))
    for own in cache:
        own.filter(index)
    _note_padding(cache, lengths)
    return cache


def evaluate(cache: Cache, *more: mx.array) -> None:
    mx.eval([own.state for own in cache], *more)


def _batched(cache: Any) -> Any:
    merge: dict[type, Callable[[list[Any]], Any]] = {
        KVCache: _BatchKVCache.merge,
        RotatingKVCache: BatchRotatingKVCache.merge,
    }
    if isinstance(cache, ArraysCache):  # the same class alone and in a batch
        return cache
    make = merge.get(type(cache))
    return make([cache]) if make else cache


def _note_padding(cache: Cache, lengths: Sequence[int]) -> None:
    for own in cache:
        if isinstance(own, _BatchKVCache):
            own.unpadded = len(set(lengths)) == 1
