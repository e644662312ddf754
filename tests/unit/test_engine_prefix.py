"""What can be reused of a prompt: decided from its tokens, media and spans."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_vlgen.engine.prefix import BLOCK, agreement, block_keys, covers, cut_back, token_units, units_of
from mlx_vlgen.inputs.prompt import Media, Prompt, Span


def picture(color: int, *spans: Span) -> Media:
    return Media("image", np.full((1, 2, 2, 3), color, np.uint8), (1, 1), spans, (2, 2))


def prompt(length: int, media: Sequence[Media] = (), two_way: Sequence[Span] = ()) -> Prompt:
    return Prompt(np.arange(length, dtype=np.int32), tuple(media), tuple(two_way))


spans = st.tuples(st.integers(0, 40), st.integers(1, 20)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(st.integers(1, 60), st.lists(spans, max_size=4), st.lists(spans, max_size=4), st.integers(0, 99))
def test_a_prefix_cuts_nothing_and_leaves_a_token(length: int, media: list[Span], two_way: list[Span], at: int) -> None:
    given_prompt = prompt(length, [picture(0, span) for span in media], two_way)
    cut = cut_back(at, given_prompt)
    assert 0 <= cut <= min(at, length - 1)
    assert not any(start < cut < end for start, end in [*media, *two_way])


def test_a_video_of_several_spans_is_one_medium() -> None:
    assert cut_back(14, prompt(30, [picture(0, (5, 8), (12, 15), (20, 22))])) == 5
    assert cut_back(22, prompt(30, [picture(0, (5, 8), (12, 15), (20, 22))])) == 22


def test_spans_whose_positions_depend_on_each_other_are_not_cut() -> None:
    framed = Prompt(np.arange(30, dtype=np.int32), (picture(0, (5, 8)),), unbroken=((4, 10),))
    assert [cut_back(at, framed) for at in (4, 5, 7, 9, 10, 20)] == [4, 4, 4, 4, 10, 20]
    assert (framed.before(12).unbroken, framed.after(2).unbroken) == (((4, 10),), ((2, 8),))


def test_equal_ids_with_another_picture_differ_from_its_first_token() -> None:
    one, other = (prompt(30, [picture(color, (4, 12))]) for color in (1, 2))
    assert agreement(units_of(one), units_of(other)) == 4
    assert agreement(units_of(one), units_of(prompt(30, [picture(1, (4, 12))]))) == 30
    assert agreement(units_of(one), units_of(prompt(30))) == 4
    assert agreement(units_of(one), units_of(prompt(30, [picture(1, (5, 13))]))) == 4  # the same, a token later
    assert agreement(units_of(prompt(30, two_way=[(3, 9)])), units_of(prompt(30, two_way=[(3, 10)]))) == 3


@pytest.mark.parametrize("field", ["two_way", "unbroken"])
def test_what_depends_on_later_positions_is_known_by_them(field: str) -> None:
    """Two pictures that see each other: the first one's keys and values are others beside another second one."""
    spans: dict[str, Any] = {field: ((2, 20),)}
    one, other, again = (
        units_of(replace(prompt(30, [picture(1, (4, 8)), picture(color, (12, 16))]), **spans)) for color in (2, 3, 2)
    )
    assert (agreement(one, other), agreement(one, again)) == (2, 30)


@given(st.lists(st.integers(0, 2), max_size=3 * BLOCK), st.lists(st.integers(0, 2), max_size=3 * BLOCK))
def test_keys_are_equal_just_where_all_before_them_is(one: list[int], other: list[int]) -> None:
    ours, theirs = token_units(one), token_units(other)
    same = agreement(ours, theirs)
    keys = zip(block_keys(b"", ours), block_keys(b"", theirs), strict=False)
    for place, (key, counterpart) in enumerate(keys):
        end = (place + 1) * BLOCK
        assert (key == counterpart) == (one[:end] == other[:end] and same >= min(len(one), end))
    assert block_keys(b"a", ours) != block_keys(b"b", ours) or not one


def test_runs_cover_what_they_hold() -> None:
    assert covers([(0, 4), (10, 5)], 10, 15) and covers([(0, 4), (4, 3)], 1, 6) and covers([], 3, 3)
    assert not covers([(0, 4), (10, 5)], 3, 11) and not covers([(10, 5)], 9, 15)
