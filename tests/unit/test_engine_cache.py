"""Caches of rows that come and go, take guesses back and split: each row attends to its keys, as a plain computation
over its history does."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_rows import Oracle, Play, Rows, stories

from mlx_vlgen._runtime import mx
from mlx_vlgen.engine import cache as kv
from mlx_vlgen.engine.columns import STEP
from mlx_vlgen.engine.kv_settings import KVSettings
from mlx_vlgen.models.base import Full, LayerKind, Opaque, Recurrent, Sliding

SIZE, WINDOW = 4, 5
KINDS: dict[str, tuple[LayerKind, Oracle]] = {
    "full": (Full(), Oracle()),
    "sliding": (Sliding(WINDOW), Oracle(visible=lambda q, p: p > q - WINDOW)),
    "chunked": (Sliding(WINDOW, chunked=True), Oracle(visible=lambda q, p: p // WINDOW == q // WINDOW)),
}
WITHOUT_MASK = ("full", "sliding")
"""Where the last token attends to all that a single row's buffers hold."""


def play(kind: str) -> Play:
    layer, oracle = KINDS[kind]
    return Play(KVSettings(), oracle, SIZE, layer=layer)


@pytest.mark.parametrize("kind", WITHOUT_MASK)
@pytest.mark.parametrize("chunks", [(1,), (3,), (12,), (4, 4, 1), (1,) * 7, (2, 9, 3), (STEP, 1, 9)])
def test_single_row(kind: str, chunks: tuple[int, ...]) -> None:
    """Integer offset, no mask array at decode, buffers of one slot."""
    factory = play(kind)
    row = factory.single(*chunks)
    for _ in range(8):
        factory.decode(row)
        assert isinstance(row.cache[0].offset, int) and row.decode_mask() is None
    assert row.slots == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [(3, 3), (1, 1), (1, 9), (7, 2, 5), (9, 1, 1, 6), (12, 4), (STEP + 1, 2)])
def test_pack(kind: str, lengths: tuple[int, ...]) -> None:
    """Padded on the right for the forward, past the window too; "causal" although lengths differ."""
    factory = play(kind)
    rows = factory.pack(*lengths)
    factory.decode(rows, 8)
    if kind == "full":
        assert kv.make_cache([Full()], padded=lengths)[0].make_mask(max(lengths)) in (None, "causal")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("first", "second"), [((4,), (4,)), ((2,), (9,)), ((9, 3), (1,)), ((1,), (12, 1))])
def test_join_of_two(kind: str, first: tuple[int, ...], second: tuple[int, ...]) -> None:
    factory = play(kind)
    rows = factory.single(*first).join(factory.single(*second))
    factory.decode(rows, 8)


@pytest.mark.parametrize("kind", WITHOUT_MASK)
def test_one_row_left_has_its_own_buffers(kind: str) -> None:
    factory = play(kind)
    rows = factory.pack(5, 2, 7).select([1])
    assert rows.slots == 1 and rows.cache[0].offset == 2 and rows.decode_mask() is None
    factory.decode(rows, 8)


def test_no_mask_where_all_rows_see_all_keys() -> None:
    """Rows of equal length have none; with a row of another length there is one; and none again without it."""
    factory = play("full")
    rows = factory.pack(4, 4)
    factory.decode(rows)
    assert rows.decode_mask() is None and rows.cache[0].offset == 5
    rows = rows.join(factory.single(9))
    factory.decode(rows)
    assert rows.decode_mask() is not None
    rows = rows.select([0, 1])
    assert rows.decode_mask() is None
    factory.decode(rows)
    sliding = play("sliding").pack(9, 30)
    assert sliding.decode_mask() is None, "all windows are full"


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=settings().max_examples // 2)
@given(stories)
def test_any_coming_and_going(kind: str, story: tuple) -> None:
    play(kind).story(*story)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=settings().max_examples // 2)
@given(st.data())
def test_guesses_are_taken_back(kind: str, data: st.DataObject) -> None:
    """Steps on several tokens, of which each row keeps the first and perhaps more, between joins and leaves."""
    factory = play(kind)
    rows = factory.single(*data.draw(st.lists(st.integers(1, 13), min_size=1, max_size=3)))
    for _ in range(data.draw(st.integers(1, 6))):
        match data.draw(st.integers(0, 3)):
            case 0:
                rows = rows.join(factory.pack(*data.draw(st.lists(st.integers(1, 13), min_size=2, max_size=3))))
            case 1 if len(rows.histories) > 1:
                rows = rows.select([*range(len(rows.histories))][data.draw(st.integers(0, 1)) :: 2])
            case _:
                guesses = data.draw(st.integers(0, 20))
                counts = st.lists(st.integers(0, guesses), min_size=len(rows.histories), max_size=len(rows.histories))
                kv.reserve(rows.cache, guesses)
                rows.step([factory.vectors(1 + count) for count in data.draw(counts)], widest=1 + guesses)
                rows.rollback(data.draw(counts))
        factory.decode(rows, data.draw(st.integers(0, 2)))
    factory.decode(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_search(kind: str) -> None:
    """Taken in any order, some twice: both go on, and so do those that they come from."""
    factory = play(kind)
    rows = factory.pack(9, 2, 6)
    taken = Rows(rows.oracle, kv.take(rows.cache, [2, 0, 2, 2]), [rows.histories[row] for row in (2, 0, 2, 2)])
    factory.decode(taken, 3)
    factory.decode(rows, 3)
    alone = Rows(rows.oracle, kv.alone(rows.cache, 1), [rows.histories[1]])
    factory.decode(alone, 3)
    factory.decode(rows, 3)


@given(st.sets(st.integers(0, 9), min_size=1))
def test_those_beyond_take_the_places_of_those_who_leave(staying: set[int]) -> None:
    order = kv.compacted(staying)
    assert set(order) == staying and kv.compacted(order) == order
    assert all(row in (slot, row) and (row == slot or row >= len(staying)) for slot, row in enumerate(order))


def test_what_joins_and_leaves_copies_no_other_row() -> None:
    """There is a slot to spare once rows have joined; after that only the arriving or the moved row is written."""
    factory = play("full")
    rows = factory.single(300)
    for _ in range(3):
        rows = rows.join(factory.single(300))
    before, slots = mx.get_active_memory(), rows.slots
    assert slots > 4
    mx.reset_peak_memory()
    rows = rows.join(factory.single(10))
    whole = rows.cache[0].nbytes
    assert rows.slots == slots and mx.get_peak_memory() - before < whole / 2
    mx.reset_peak_memory()
    rows = rows.select([0, 2, 3, 4])
    assert mx.get_peak_memory() - before < whole / 2
    factory.decode(rows)


def test_no_room_is_made_for_rows_that_cannot_come() -> None:
    """Slots to spare end where all rows that may come are there; those that are needed never do."""
    factory = play("full")

    def slots(most: int) -> list[int]:
        cache, taken = factory.single(30).cache, []
        for rows in range(1, 6):
            kv.join(cache, factory.single(30).cache, rows, most)
            taken.append(cache[0].state[0].shape[0])
        return taken

    assert slots(4) == [3, 3, 4, 5, 6] and slots(6) == [3, 3, 5, 5, 6] and slots(100) == [3, 3, 5, 5, 7]


@pytest.mark.parametrize("settings", [KVSettings(), KVSettings(8, 32, 300)], ids=str)
def test_a_prompt_in_chunks_finds_its_room_made(settings: KVSettings) -> None:
    cache = kv.make_cache([Full()], settings, expected=1000)
    x = mx.zeros((1, 2, 250, 32))
    cache[0].update_and_fetch(x, x)
    allocated = [part.shape for part in cache[0].state]
    for _ in range(3):
        cache[0].update_and_fetch(x, x)
    assert [part.shape for part in cache[0].state] == allocated
    assert max(shape[2] for shape in allocated) < 1000 + STEP


@pytest.mark.parametrize(("cuda", "columns"), [(False, [112, 1008]), (True, [112, 4 * STEP])])
def test_long_rows_on_cuda_have_the_columns_that_cudnn_takes(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, columns: list[int]
) -> None:
    monkeypatch.setattr(mx.cuda, "is_available", lambda: cuda)
    x = mx.zeros((1, 2, 50, 32))
    caches = [kv.make_cache([Full()], KVSettings(), expected=expected) for expected in (100, 1000)]
    assert [cache[0].update_and_fetch(x, x) and cache[0].state[0].shape[2] for cache in caches] == columns


def test_columns_that_no_row_needs_are_given_back() -> None:
    cache = kv.make_cache([Full()], padded=[20 * STEP, 3, 4, 5])
    x = mx.zeros((4, 2, 20 * STEP, SIZE))
    cache[0].update_and_fetch(x, x)
    kv.finalize(cache)
    whole = cache[0].nbytes
    kv.select(cache, kv.compacted([1, 2, 3]))
    assert cache[0].nbytes < whole / 10


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_row_leaves_behind_reaches_nobody(kind: str) -> None:
    """A row whose values are not numbers, in whose slot others go on."""
    factory = play(kind)
    rows = factory.pack(9, 9, 9).join(factory.single(2))
    [layer] = rows.cache
    poison = mx.full((4, 2, 1, SIZE), mx.nan)
    for _ in range(3):  # of all rows, but only the third keeps them
        layer.reserve(1)
        layer.update_and_fetch(poison, poison)
    layer.lengths = [9, 9, 12, 2]
    layer.columns[0].arrays = [
        mx.where(mx.arange(len(a))[:, None, None, None] == 2, a, mx.nan_to_num(a)) for a in layer.columns[0].arrays
    ]
    rows.histories[2] = factory.vectors(12)
    rows = rows.select([0, 1, 3])
    factory.decode(rows, 1)
    rows = rows.join(factory.single(1))
    factory.decode(rows, 3)


def states(values: Sequence[float]) -> kv.Cache:
    cache = kv.make_cache([Recurrent(2)])
    cache[0][0] = mx.array(values)[:, None]
    cache[0][1] = -mx.array(values)[:, None]
    return cache


def test_states_join_and_leave() -> None:
    cache = states([1, 2])
    kv.join(cache, states([3]), 2)
    taken, alone = kv.take(cache, [2, 2, 0]), kv.alone(cache, 1)
    kv.select(cache, kv.compacted([0, 2]))
    for layers, expected in ((cache, [1, 3]), (taken, [3, 3, 1]), (alone, [2])):
        assert np.array(layers[0][0])[:, 0].tolist() == expected
        assert np.array(layers[0][1])[:, 0].tolist() == [-value for value in expected]


def test_a_join_that_lacks_memory_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that had taken the row give it up again."""
    layout: list[LayerKind] = [Full(), Recurrent(1), Full()]
    x = mx.zeros((1, 2, 3, SIZE))
    caches = [kv.make_cache(layout), kv.make_cache(layout)]
    for cache in caches:
        cache[1][0] = mx.zeros((1, 5))
        for layer in (cache[0], cache[2]):
            layer.update_and_fetch(x, x)

    def evaluate(cache: kv.Cache) -> None:
        raise RuntimeError("[malloc] Unable to allocate 1234 bytes.")

    monkeypatch.setattr(kv, "evaluate", evaluate)
    with pytest.raises(RuntimeError, match="allocate"):
        kv.join(*caches, 1)
    first, second, third = caches[0]
    assert first.lengths == third.lengths == [3] and second[0].shape == (1, 5)


def test_opaque_rows_stay_alone() -> None:
    """A cache that only its model knows is made by it, and cannot run with others."""
    cache = object()
    layout: list[LayerKind] = [Full(), Opaque(lambda: cache)]
    assert kv.make_cache(layout)[1] is cache
    assert kv.can_batch([Full(), Sliding(3), Recurrent(2)]) and not kv.can_batch(layout)
    with pytest.raises(ValueError, match="together"):
        kv.make_cache(layout, padded=[1, 2])
