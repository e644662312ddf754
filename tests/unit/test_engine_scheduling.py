"""The pure deciders of the loop."""

from itertools import chain, combinations, groupby

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlx_vlgen.engine.scheduling import admissible, chunk_end, encoding_groups, packs
from mlx_vlgen.inputs.prompt import Media

counts = st.integers(1, 60)


@given(st.lists(counts, max_size=10), st.integers(0, 100), st.integers(0, 10), st.none() | counts)
def test_admissible(reserves: list[int], taken: int, slots: int, budget: int | None) -> None:
    """As many as fit, in order; one that would be alone always fits."""
    count = admissible(reserves, taken, slots, budget)
    assert count <= min(slots, len(reserves))

    def fits(n: int) -> bool:
        alone = taken == 0 and n == 1
        return n <= slots and (budget is None or alone or taken + sum(reserves[:n]) <= budget)

    assert count == 0 or fits(count)
    assert count == len(reserves) or not fits(count + 1)


def test_nobody_is_overtaken() -> None:
    assert admissible([50, 1, 1], taken=10, slots=3, budget=30) == 0
    assert admissible([50, 1, 1], taken=0, slots=3, budget=30) == 1


@given(st.lists(counts, min_size=1, max_size=6), counts, st.integers(0, 20))
def test_packs(lengths: list[int], step: int, forward: int) -> None:
    """As many of the first rows as are within the step, each group padded to its longest; unless it is one row. No
    other groups cost less."""

    def tokens(groups: list[list[int]]) -> int:
        return sum(max(lengths[i] for i in group) * len(group) for group in groups)

    def best(rows: list[int]) -> list[list[list[int]]]:
        """Every way to group rows, by cost."""
        if not rows:
            return [[]]
        ways = [
            [[rows[0], *others], *rest]
            for size in range(len(rows))
            for others in combinations(rows[1:], size)
            for rest in best([row for row in rows[1:] if row not in others])
        ]
        return sorted(ways, key=lambda groups: tokens(groups) + forward * len(groups))

    groups = packs(lengths, step, forward)
    count = sum(map(len, groups))
    assert sorted(chain(*groups)) == list(range(count)) and groups == sorted(map(sorted, groups))
    least = best(list(range(count)))[0]
    assert tokens(groups) + forward * len(groups) == tokens(least) + forward * len(least)
    assert count == 1 or tokens(groups) <= step
    if count < len(lengths):
        assert tokens(packs(lengths[: count + 1], 10**6, forward)) > step


def test_rows_of_like_length_are_padded_together() -> None:
    assert packs([200, 20, 190, 30], 2048, 64) == [[0, 2], [1, 3]]
    assert packs([200, 20, 190, 30], 2048, 1024) == [[0, 1, 2, 3]]
    assert packs([200, 20, 190, 30], 430, 64) == [[0, 2], [1]]


spans = st.lists(st.tuples(st.integers(0, 59), counts).map(lambda s: (s[0], min(60, s[0] + s[1]))), max_size=5)


@given(spans, counts)
def test_chunks(two_way: list[tuple[int, int]], step: int) -> None:
    """Chunks cover the prompt, always move on, cut no two-way span, and are longer than a step only for one."""
    start, length = 0, 60
    while start < length:
        end = chunk_end(start, length, step, two_way)
        assert start < end <= length
        assert not any(first < end < last for first, last in two_way)
        plain = min(start + step, length)
        assert end == plain or any(first < plain < last for first, last in two_way)
        start = end


def test_chunk_grows_over_spans_that_overlap() -> None:
    assert chunk_end(0, 100, 10, [(15, 30), (8, 16), (30, 40)]) == 30
    assert chunk_end(0, 100, 10, [(0, 10), (10, 20)]) == 10


def medium(kind: str, rows: int, columns: int) -> Media:
    return Media(kind, np.zeros((rows * columns, 3), np.float32), (1, rows, columns), (), (rows, columns))  # type: ignore[arg-type]


media = st.lists(st.builds(medium, st.sampled_from(["image", "video"]), st.integers(1, 3), st.integers(1, 3)))


@given(media, st.integers(1, 100), st.booleans(), st.sampled_from([(), ("image",), ("image", "video")]))
def test_encoding_groups(given_media: list[Media], pixels: int, group: bool, packed: tuple[str, ...]) -> None:
    """A partition into groups of one shape, or of any where they are packed, each within the limit unless it is one
    medium. Equal shapes lie beside each other."""
    groups = list(encoding_groups(given_media, pixels, group, packed))
    flat = [index for indices in groups for index in indices]
    assert sorted(flat) == list(range(len(given_media)))
    for indices in groups:
        kinds, shapes = ([getattr(given_media[i], name) for i in indices] for name in ("kind", "grid"))
        assert len(set(kinds)) == 1 and (len(set(shapes)) == 1 or kinds[0] in packed)
        assert not group or len(list(groupby(shapes))) == len(set(shapes))
        assert len(indices) == 1 or sum(given_media[i].pixels.size for i in indices) <= pixels
    if not group:
        assert flat == sorted(flat)


def test_grouping_brings_equal_shapes_together() -> None:
    mixed = [medium("image", 2, 2), medium("image", 1, 3), medium("image", 2, 2)]
    assert sorted(map(len, encoding_groups(mixed, 10**6))) == [1, 2]
    assert list(encoding_groups(mixed, 10**6, group=False)) == [[0], [1], [2]]
    assert list(encoding_groups(mixed, 10**6, group=True, packed=["image"])) == [[1, 0, 2]]
    assert list(encoding_groups(mixed, 10**6, group=False, packed=["image"])) == [[0, 1, 2]]
