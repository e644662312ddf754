"""Caches of rows that come and go: each row attends to its keys, as a plain computation over its history does."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_vlgen._mlx_lm import KVCache, RotatingKVCache, create_attention_mask
from mlx_vlgen._runtime import mx
from mlx_vlgen.engine import cache as kv
from mlx_vlgen.models.base import Full, LayerKind, Opaque, Recurrent, Sliding

HEADS, SIZE, WINDOW = 2, 4, 5
LAYOUT: list[LayerKind] = [Full(), Sliding(WINDOW), Recurrent(2)]


class Rows:
    """Rows of one cache, each with the vectors (n, heads, size) that it was given so far: keys, values and queries."""

    def __init__(self, cache: kv.Cache, histories: Sequence[np.ndarray]):
        self.cache, self.histories = cache, list(histories)

    @property
    def lengths(self) -> list[int]:
        return [len(history) for history in self.histories]

    def step(self, new: Sequence[np.ndarray], widest: int) -> None:
        """Give each row its new vectors, padded on the right to `widest`, and check what it attends to."""
        padded = [np.pad(vectors, [(0, widest - len(vectors)), (0, 0), (0, 0)]) for vectors in new]
        x = mx.array(np.stack(padded).transpose(0, 2, 1, 3))  # (B, H, L, D)
        self.histories = [np.concatenate(pair) for pair in zip(self.histories, new, strict=True)]
        full, sliding, recurrent = self.cache
        for layer, window in ((full, None), (sliding, WINDOW)):
            mask = create_attention_mask(x.swapaxes(1, 2), layer, window_size=window)
            keys, values = layer.update_and_fetch(x, x)
            out = mx.fast.scaled_dot_product_attention(x, keys, values, scale=1.0, mask=mask)
            for row, (history, count) in enumerate(zip(self.histories, map(len, new), strict=True)):
                for back in range(count):
                    past = history[: len(history) - back]
                    got = np.array(out[row, :, count - 1 - back])
                    assert got == pytest.approx(attend(past[-(window or len(past)) :]), abs=1e-5)
        last = [history[-1].ravel() for history in self.histories]
        recurrent[0], recurrent[1] = mx.array(np.stack(last)), mx.array(-np.stack(last))

    def join(self, other: "Rows") -> "Rows":
        cache = kv.join(self.cache, other.cache, self.lengths + other.lengths)
        return Rows(cache, self.histories + other.histories)

    def select(self, rows: Sequence[int]) -> "Rows":
        histories = [self.histories[row] for row in rows]
        return Rows(kv.select(self.cache, rows, list(map(len, histories))), histories)

    def check_state(self) -> None:
        """The recurrent layer's arrays are each row's, and only padded batches get a mask at decode."""
        full, _, recurrent = self.cache
        for row, history in enumerate(self.histories):
            assert np.array(recurrent[0][row]) == pytest.approx(history[-1].ravel())
            assert np.array(recurrent[1][row]) == pytest.approx(-history[-1].ravel())
        assert (decode_mask(full) is None) == (len(set(self.lengths)) == 1)


def decode_mask(cache: Any) -> mx.array | None:
    """The mask of a step of one token a row."""
    return create_attention_mask(mx.zeros((1, 1, SIZE)), cache)


def attend(past: np.ndarray) -> np.ndarray:
    """(H, D): the last vector's attention over all of them."""
    scores = np.einsum("nhd,hd->hn", past, past[-1])
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.einsum("hn,nhd->hd", weights / weights.sum(axis=1, keepdims=True), past)


def vectors(draw: np.random.Generator, count: int) -> np.ndarray:
    return draw.normal(size=(count, HEADS, SIZE)).astype(np.float32)


def single(draw: np.random.Generator, *chunks: int) -> Rows:
    """One row, prefilled in chunks."""
    row = Rows(kv.make_cache(LAYOUT), [vectors(draw, 0)])
    for chunk in chunks:
        row.step([vectors(draw, chunk)], chunk)
    return row


def pack(draw: np.random.Generator, lengths: Sequence[int]) -> Rows:
    """Rows that are prefilled together."""
    rows = Rows(kv.make_pack(LAYOUT, lengths), [vectors(draw, 0) for _ in lengths])
    rows.step([vectors(draw, length) for length in lengths], max(lengths))
    kv.finalize(rows.cache, lengths)
    return rows


def decode(draw: np.random.Generator, rows: Rows) -> None:
    rows.step([vectors(draw, 1) for _ in rows.histories], 1)
    rows.check_state()


@pytest.mark.parametrize("chunks", [(1,), (3,), (12,), (4, 4, 1), (1, 1, 1, 1, 1, 1, 1), (2, 9, 3)])
def test_single_row(chunks: tuple[int, ...]) -> None:
    """Unbatched: plain caches, integer offset, no mask array at decode."""
    draw = np.random.default_rng(0)
    row = single(draw, *chunks)
    for _ in range(8):
        decode(draw, row)
    assert type(row.cache[0]) is KVCache and isinstance(row.cache[0].offset, int)
    assert type(row.cache[1]) is RotatingKVCache


@pytest.mark.parametrize("lengths", [(3, 3), (1, 1), (1, 9), (7, 2, 5), (9, 1, 1, 6), (12, 4)])
def test_pack(lengths: tuple[int, ...]) -> None:
    """Padded on the right for the forward, rolled to the left after it; past the window too."""
    draw = np.random.default_rng(1)
    rows = pack(draw, lengths)
    for _ in range(8):
        decode(draw, rows)


@pytest.mark.parametrize(("first", "second"), [((4,), (4,)), ((2,), (9,)), ((9, 3), (1,)), ((1,), (12, 1))])
def test_join_of_two(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    draw = np.random.default_rng(2)
    rows = single(draw, *first).join(single(draw, *second))
    for _ in range(8):
        decode(draw, rows)


def test_one_row_left_is_unbatched() -> None:
    """So that it decodes as fast as if it had always been alone."""
    draw = np.random.default_rng(3)
    rows = pack(draw, (5, 2, 7)).select([1])
    assert type(rows.cache[0]) is KVCache and type(rows.cache[1]) is RotatingKVCache
    assert rows.cache[0].offset == 2 and decode_mask(rows.cache[0]) is None
    for _ in range(8):
        decode(draw, rows)


def test_mask_returns_with_padding() -> None:
    """Rows of equal length have none; with a row of another length there is one; and none again without it."""
    draw = np.random.default_rng(4)
    rows = pack(draw, (4, 4))
    decode(draw, rows)
    rows = rows.join(single(draw, 9))
    decode(draw, rows)
    assert decode_mask(rows.cache[0]) is not None
    rows = rows.select([0, 1])
    assert decode_mask(rows.cache[0]) is None
    decode(draw, rows)


lengths = st.lists(st.integers(1, 9), min_size=1, max_size=3)


@given(lengths, st.lists(lengths | st.integers(0, 6) | st.sets(st.integers(0, 5)), max_size=8))
def test_any_coming_and_going(first: list[int], events: list[list[int] | int | set[int]]) -> None:
    """A list is a pack that joins, a number so many steps, a set the rows that stay."""
    draw = np.random.default_rng(5)

    def arriving(pack_lengths: list[int]) -> Rows:
        return single(draw, *pack_lengths) if len(pack_lengths) == 1 else pack(draw, pack_lengths)

    rows = arriving(first)
    for event in events:
        if isinstance(event, list):
            rows = rows.join(arriving(event))
        elif isinstance(event, int):
            for _ in range(event):
                decode(draw, rows)
        elif 0 < len(staying := sorted(row for row in event if row < len(rows.histories))) < len(rows.histories):
            rows = rows.select(staying)
        rows.check_state()
    decode(draw, rows)


def test_opaque_rows_stay_alone() -> None:
    """A cache that only its model knows is made by it, and cannot run with others."""
    cache = object()
    layout: list[LayerKind] = [Full(), Opaque(lambda: cache)]
    assert kv.make_cache(layout)[1] is cache
    assert kv.can_batch(LAYOUT) and not kv.can_batch(layout)
    with pytest.raises(ValueError, match="together"):
        kv.make_pack(layout, [1, 2])
