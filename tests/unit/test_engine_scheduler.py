"""The plan of a step: what may come in, and how little is done between two tokens of rows that decode."""

import copy
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mlx_vlgen import Request, SamplingParams
from mlx_vlgen.engine.budget import Budget
from mlx_vlgen.engine.request import Row
from mlx_vlgen.engine.scheduler import READ_AHEAD, SLOW, Limits, Plan, make_plan
from mlx_vlgen.engine.text import TextStream
from mlx_vlgen.inputs.prompt import Media, Prompt
from mlx_vlgen.models.base import Full

LIMITS = Limits(step_size=40, decode_step_size=10, vision_pixels=64, decode_vision_pixels=16)


def row(id: int, length: int = 5, pictures: tuple[int, ...] = (), **fields: Any) -> Row:
    """A row that was read. pictures: the pixel values of each."""
    media = tuple(
        Media("image", np.zeros(size, np.float32), (1, 1, size), ((place, place + 1),), (1, size))
        for place, size in enumerate(pictures)
    )
    prompt = Prompt(np.zeros(length, np.int32), media)
    fields = {"ready": True, "prompt": prompt} | fields
    return Row(id, Request(prompt, sampling=fields.pop("sampling", SamplingParams())), TextStream(), 0, **fields)


def plan(queue: list[Row], coming: list[Row] = [], decoding: list[Row] = [], **named: Any) -> Plan:  # noqa: B006
    named = {"encoded": set(), "slots": 8, "budget": Budget([Full()], None), "limits": LIMITS, "now": 100.0} | named
    return make_plan(queue, coming, decoding, **named)


pictures = st.lists(st.sampled_from([1, 4, 9, 30]), max_size=4).map(tuple)
rows = st.lists(st.tuples(st.integers(5, 60), pictures), max_size=9)


@given(rows, st.integers(0, 3), st.integers(0, 9))
def test_a_plan_is_within_its_bounds(drawn: list[tuple[int, tuple[int, ...]]], live: int, admitted: int) -> None:
    """Between two tokens of a row there is one small chunk or pack and few small pictures, at most."""
    every = [row(id, length, sizes) for id, (length, sizes) in enumerate(drawn)]
    decoding = [row(100 + id) for id in range(live)]
    queue, coming = every[admitted:], every[:admitted]
    before = copy.deepcopy((queue, coming, decoding))
    step = plan(queue, coming, decoding)
    assert [len(rows) for rows in before] == [len(queue), len(coming), len(decoding)]  # it changes nothing
    assert list(step.admitted) == [other.id for other in queue[: len(step.admitted)]]  # in order of arrival
    size = LIMITS.decode_step_size if live else LIMITS.step_size
    packs = [[chunk.end - chunk.start for chunk in pack] for pack in step.prefilled]
    assert sum(max(pack) * len(pack) for pack in packs) <= size
    computed = [chunk.id for pack in step.prefilled for chunk in pack]
    assert sorted(computed) == [other.id for other in [*coming, *queue]][: len(computed)]  # nobody is overtaken
    groups = [[every[id].media[place].pixels.size for id, place in group] for group in step.encoded]
    if live and groups:
        groups = [[size for sizes in groups for size in sizes]]
    for sizes in groups:
        assert len(sizes) == 1 or sum(sizes) <= (LIMITS.decode_vision_pixels if live else LIMITS.vision_pixels)


def test_a_row_is_prefilled_in_chunks_then_its_negative_prompt() -> None:
    long = row(1, length=95, embedded=True)
    long.negative = row(1, length=45, positive=long)
    chunks = []
    while step := plan([], [long]).prefilled:
        [[chunk]] = step
        part = long.negative if chunk.negative else long
        assert chunk.start == part.filled
        part.filled = chunk.end
        chunks.append(chunk.end - chunk.start)
        if part.filled == part.length and chunk.negative:
            break
    assert chunks == [40, 40, 15, 40, 5]


def test_nobody_overtakes_but_what_is_slow_to_read() -> None:
    slow, quick = row(1, ready=False, reading_since=100 - SLOW / 2), row(2)
    waiting = plan([slow, quick])
    assert waiting.admitted == () and waiting.lacks
    later = plan([slow, quick], now=100 + SLOW)
    assert later.admitted == (2,) and not later.lacks and later.unread == (1,)


def test_few_rows_are_read_ahead() -> None:
    queue = [row(id, ready=False) for id in range(50)]
    assert plan(queue).unread == tuple(range(1 + READ_AHEAD))
    assert plan(queue, decoding=[row(100 + id) for id in range(8)]).unread == tuple(range(1 + READ_AHEAD))


def test_pictures_of_the_next_row_are_encoded_while_a_prompt_is_under_way() -> None:
    long, next_row = row(1, length=95, embedded=True, filled=10, prefill_started=1.0), row(2, pictures=(4,))
    step = plan([next_row], [long], [row(3)])
    assert step.admitted == (2,) and step.encoded == (((2, 0),),)
    [[chunk]] = step.prefilled
    assert (chunk.id, chunk.start, chunk.end) == (1, 10, 20)


def test_rows_that_end_before_they_decode() -> None:
    """One whose time is up gets what one forward gives, if one is enough and it was not begun."""
    timed = SamplingParams(max_time=1.0)
    late = {"arrived": 50.0, "sampling": timed}
    assert plan([row(1, **late), row(2, length=41, **late)]).ended == ((2, "length"),)
    begun = row(3, length=30, prefill_started=1.0, **late)
    refused = row(4, error=ValueError("x"))
    left = row(5, cancelled=True)
    step = plan([row(6, sampling=SamplingParams(max_tokens=0))], [begun, refused, left])
    assert step.ended == ((3, "length"), (4, "error"), (5, "cancelled"), (6, "length"))
    assert step.prefilled == ()
