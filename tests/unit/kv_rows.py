"""Rows of one layer's cache that come and go, each compared with plain attention over all that it was given."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import strategies as st
from mlx_lm.models.base import scaled_dot_product_attention

from mlx_vlgen._runtime import mx
from mlx_vlgen.engine import cache as kv
from mlx_vlgen.engine.kv_settings import KVSettings
from mlx_vlgen.models.base import Full, LayerKind

KV_HEADS, GROUPS = 2, 2  # each key head serves two query heads


class Vectors(NamedTuple):
    """What a row was given: keys, values (n, KV_HEADS, D), queries (n, KV_HEADS * GROUPS, D)."""

    keys: np.ndarray
    values: np.ndarray
    queries: np.ndarray

    @classmethod
    def draw(cls, random: np.random.Generator, count: int, size: int) -> "Vectors":
        shapes = [(count, heads, size) for heads in (KV_HEADS, KV_HEADS, KV_HEADS * GROUPS)]
        return cls(*(random.normal(size=shape).astype(np.float32) for shape in shapes))

    def __add__(self, later: "Vectors") -> "Vectors":  # type: ignore[override]
        return Vectors(*map(np.concatenate, zip(self, later, strict=True)))

    def padded(self, count: int) -> "Vectors":
        """On the right, with values that would show."""
        return Vectors(*(np.pad(x, [(0, count - len(x)), (0, 0), (0, 0)], constant_values=9) for x in self))


Stored = Callable[[np.ndarray], np.ndarray]
Visible = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Oracle(NamedTuple):
    """stored: keys or values (n, H, D) as the cache should give them back; visible: whether a query at position q
    attends to a key at position p <= q."""

    stored: Stored = lambda x: x
    visible: Visible = lambda q, p: p <= q

    def attend(self, history: Vectors, count: int) -> np.ndarray:
        """(count, heads, D): attention of the last `count` tokens."""
        positions = np.arange(len(history.keys))
        queries = positions[len(positions) - count :]
        keys, values = (np.repeat(self.stored(x), GROUPS, axis=1).astype(np.float64) for x in history[:2])
        scores = np.einsum("qhd,phd->hqp", history.queries[queries], keys) * keys.shape[-1] ** -0.5
        allowed = (positions <= queries[:, None]) & self.visible(queries[:, None], positions)
        weights = np.exp(np.where(allowed, scores, -np.inf) - scores.max(axis=2, keepdims=True))
        return np.einsum("hqp,phd->qhd", weights / weights.sum(axis=2, keepdims=True), values)


class Rows:
    """Rows that share a cache, with their histories."""

    def __init__(self, oracle: Oracle, cache: kv.Cache, histories: Sequence[Vectors]):
        self.oracle, self.cache, self.histories = oracle, cache, list(histories)

    @property
    def lengths(self) -> list[int]:
        return [len(history.keys) for history in self.histories]

    def step(self, new: Sequence[Vectors], widest: int = 0) -> None:
        """Give each row its new vectors, padded on the right to the longest, or to `widest` where those that the
        padding makes are taken back next; and check what each attends to."""
        counts = [len(vectors.keys) for vectors in new]
        widest = widest or max(counts)
        keys, values, queries = (
            mx.array(np.stack(parts).transpose(0, 2, 1, 3))
            for parts in zip(*(vectors.padded(widest) for vectors in new), strict=True)
        )
        [layer] = self.cache
        assert np.broadcast_to(np.array(layer.offset), len(new)).tolist() == self.lengths
        mask = layer.make_mask(widest)
        keys_values = layer.update_and_fetch(keys, values)
        out = scaled_dot_product_attention(queries, *keys_values, cache=layer, scale=keys.shape[-1] ** -0.5, mask=mask)
        kv.evaluate(self.cache, out)
        self.last = counts
        self.histories = [old + vectors for old, vectors in zip(self.histories, new, strict=True)]
        for row, (history, count) in enumerate(zip(self.histories, counts, strict=True)):
            got = np.array(out[row]).swapaxes(0, 1)[:count]
            assert got == pytest.approx(self.oracle.attend(history, count), abs=2e-5)

    def rollback(self, counts: Sequence[int]) -> None:
        """Each row takes back so many of its last vectors, but not all of the last step's, and all of its padding."""
        drop = list[int]()
        for row, count in enumerate(counts):
            padding = self.cache[0].lengths[row] - len(self.histories[row].keys)
            count = min(count, self.last[row] - 1)
            self.histories[row] = Vectors(*(part[: len(part) - count] for part in self.histories[row]))
            drop.append(padding + count)
        kv.rollback(self.cache, drop)

    @property
    def slots(self) -> int:
        return self.cache[0].state[0].shape[0]

    def join(self, other: "Rows") -> "Rows":
        kv.join(self.cache, other.cache, len(self.histories))
        return Rows(self.oracle, self.cache, self.histories + other.histories)

    def select(self, rows: Sequence[int]) -> "Rows":
        rows = kv.compacted(rows)
        kv.select(self.cache, rows)
        return Rows(self.oracle, self.cache, [self.histories[row] for row in rows])

    def decode_mask(self) -> Any:
        """The mask of a step of one token a row."""
        return self.cache[0].make_mask(1)


class Play:
    """Makes rows of given settings, with vectors of `size` from one stream of random numbers."""

    def __init__(self, settings: KVSettings, oracle: Oracle, size: int, seed: int = 0, layer: LayerKind = Full()):
        self.settings, self.oracle, self.size, self.layout = settings, oracle, size, [layer]
        self.random = np.random.default_rng(seed)

    def vectors(self, count: int) -> Vectors:
        return Vectors.draw(self.random, count, self.size)

    def single(self, *chunks: int) -> Rows:
        """One row, prefilled in chunks."""
        row = Rows(self.oracle, kv.make_cache(self.layout, self.settings), [self.vectors(0)])
        for chunk in chunks:
            row.step([self.vectors(chunk)])
        return row

    def pack(self, *lengths: int) -> Rows:
        """Rows that are prefilled together."""
        cache = kv.make_cache(self.layout, self.settings, padded=lengths)
        rows = Rows(self.oracle, cache, [self.vectors(0)] * len(lengths))
        rows.step([self.vectors(length) for length in lengths])
        kv.finalize(cache)
        return rows

    def decode(self, rows: Rows, count: int = 1) -> None:
        for _ in range(count):
            rows.step([self.vectors(1) for _ in rows.histories])

    def story(self, first: list[int], events: Sequence["Event"]) -> None:
        """A tuple is a pack that joins (one alone is prefilled by chunks of these sizes), a number so many steps, a
        set the rows that stay."""
        rows = self.single(*first)
        for event in events:
            if isinstance(event, tuple):
                chunks, lengths = event
                rows = rows.join(self.pack(*lengths) if len(lengths) > 1 else self.single(*chunks))
            elif isinstance(event, int):
                self.decode(rows, event)
            elif 0 < len(staying := sorted(row for row in event if row < len(rows.histories))) < len(rows.histories):
                rows = rows.select(staying)
        self.decode(rows)


Event = tuple[list[int], list[int]] | int | set[int]
_sizes = st.lists(st.integers(1, 13), min_size=1, max_size=3)
stories = st.tuples(
    _sizes, st.lists(st.tuples(_sizes, _sizes) | st.integers(0, 7) | st.sets(st.integers(0, 5)), max_size=7)
)
"""What `Play.story` takes."""
