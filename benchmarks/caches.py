"""What rows that join, leave and take guesses back cost, and a decoding step: our caches beside mlx-lm's, in one run.

    python benchmarks/caches.py [--rows 8] [--positions 16384] [--layers 5] [--heads 2] [--size 64] [--repeats 5]

Attention layers alone, float32, with as many queries as keys. Seconds are the least of the repeats, the two kinds in
turn; bytes are the peak above what was there before. mlx-lm's batched cache is padded on the left: each of these
operations copies it.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from mlx_vlgen._mlx_lm import models, scaled_dot_product_attention
from mlx_vlgen._runtime import mx
from mlx_vlgen.engine import cache as kv
from mlx_vlgen.models.base import Full

Cache = list[Any]


class Shape:
    """Of the layers' keys."""

    def __init__(self, layers: int, heads: int, size: int):
        self.layers, self.heads, self.size = layers, heads, size

    def vectors(self, rows: int, count: int) -> mx.array:
        return mx.random.normal((rows, self.heads, count, self.size))

    def ours(self, lengths: Sequence[int]) -> Cache:
        """Rows that joined one after another."""
        cache = self._filled(kv.make_cache([Full()] * self.layers), lengths[0])
        for rows, length in enumerate(lengths[1:], 1):
            kv.join(cache, self._filled(kv.make_cache([Full()] * self.layers), length), rows)
        return cache

    def theirs(self, lengths: Sequence[int]) -> Cache:
        single, batched = models.cache.KVCache, models.cache.BatchKVCache
        if len(lengths) == 1:
            return self._filled([single() for _ in range(self.layers)], lengths[0])
        rows = [self.theirs([length]) for length in lengths]
        cache = [batched.merge(list(layers)) for layers in zip(*rows, strict=True)]
        return evaluated(cache)

    def _filled(self, cache: Cache, length: int) -> Cache:
        for layer in cache:
            layer.update_and_fetch(self.vectors(1, length), self.vectors(1, length))
        return evaluated(cache)


def evaluated(cache: Cache) -> Cache:
    for layer in cache:
        mx.eval(layer.state)
    return cache


def step(shape: Shape, rows: int, cache: Cache, count: int = 1) -> None:
    """A forward's attention, on so many tokens a row."""
    x = shape.vectors(rows, count)
    mask = cache[0].make_mask(count, return_array=False, window_size=None)
    for layer in cache:
        keys, values = layer.update_and_fetch(x, x)
        x = scaled_dot_product_attention(x, keys, values, cache=layer, scale=0.1, mask=mask)
    mx.eval(x, [layer.state for layer in cache])


def join_theirs(cache: Cache, other: Cache) -> None:
    for layer, arriving in zip(cache, other, strict=True):
        layer.extend(models.cache.BatchKVCache.merge([arriving]))
    evaluated(cache)


def leave_theirs(cache: Cache, rows: Sequence[int]) -> None:
    for layer in cache:
        layer.filter(mx.array(list(rows)))
    evaluated(cache)


def leave_ours(cache: Cache, rows: Sequence[int]) -> None:
    kv.select(cache, kv.compacted(rows))
    evaluated(cache)


def rollback_theirs(cache: Cache, drop: Sequence[int]) -> None:
    for layer in cache:
        layer.prepare(right_padding=list(drop))
        layer.finalize()
    evaluated(cache)


def rollback_ours(cache: Cache, drop: Sequence[int]) -> None:
    kv.rollback(cache, drop)
    evaluated(cache)


def measure(operation: Callable[[], Any], times: int = 1) -> tuple[float, int]:
    """Seconds a time, and bytes."""
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    begun = time.perf_counter()
    for _ in range(times):
        operation()
    seconds = (time.perf_counter() - begun) / times
    return seconds, max(0, mx.get_peak_memory() - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"rows": 8, "positions": 16384, "layers": 5, "heads": 2, "size": 64, "repeats": 5}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    shape, rows = Shape(args.layers, args.heads, args.size), args.rows
    lengths = [args.positions - 7 * row for row in range(rows)]
    drop = [row % 4 for row in range(rows)]
    kinds = {
        "mlx-lm's": (shape.theirs, join_theirs, leave_theirs, rollback_theirs),
        "ours": (shape.ours, kv_join, leave_ours, rollback_ours),
    }
    results: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for _ in range(args.repeats):
        for kind, (make, join, leave, rollback) in kinds.items():
            cache, arriving, alone = make(lengths), make([100]), make(lengths[:1])
            step(shape, 1, alone)  # in which buffers grow
            step(shape, rows, cache)
            for operation, run, times in (
                ("decode, one row", partial(step, shape, 1, alone), 10),
                (f"decode, {rows} rows", partial(step, shape, rows, cache), 5),
                ("unequal rollback", partial(rollback, cache, drop), 1),
                ("join of 100 tokens", partial(join, cache, arriving), 1),
                ("leave of the second", partial(leave, cache, [0, *range(2, rows + 1)]), 1),
            ):
                results.setdefault((operation, kind), []).append(measure(run, times))
            del cache, arriving, alone
            mx.clear_cache()
    for operation in dict.fromkeys(name for name, _ in results):
        print(operation)
        seconds = {kind: min(time for time, _ in results[operation, kind]) for kind in kinds}
        for kind in kinds:
            peak = max(peak for _, peak in results[operation, kind])
            ratio = seconds[kind] / seconds["mlx-lm's"]
            print(f"  {kind:10}{1000 * seconds[kind]:10.2f} ms  {ratio:7.3f}  {peak / 1e6:8.1f} MB")


def kv_join(cache: Cache, other: Cache) -> None:
    kv.join(cache, other, len(cache[0].lengths))


if __name__ == "__main__":
    main()
