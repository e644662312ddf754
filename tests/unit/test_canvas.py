"""MiniCPM-V 4.7's rotary positions: those of a prompt are those of its parts, wherever a reused prefix may end."""

from typing import Any

import numpy as np

from mlx_vlgen.engine.prefix import cut_back
from mlx_vlgen.inputs.minicpmv import MiniCPMV4_7Processor
from mlx_vlgen.inputs.prompt import Media, Prompt
from mlx_vlgen.models.canvas import canvas_positions

OPEN, CLOSE, SLICE, END, NEWLINE, FEATURE, WORD = range(7)
MARKS = frozenset({OPEN, CLOSE, SLICE, END, NEWLINE})
WHOLE = [OPEN, FEATURE, FEATURE, CLOSE]
ROW = [SLICE, FEATURE, END, SLICE, FEATURE, END]
WHOLE_GRID, SLICED_GRID = (1, 4, 8, 0, 0, 0, 0), (1, 4, 8, 2, 2, 4, 4)


def prompt(tokens: list[int], grids: list[tuple[int, ...]]) -> Prompt:
    ids, unread = np.array(tokens, np.int32), list(grids)
    features = np.flatnonzero(ids == FEATURE).tolist()
    runs = [(i, i + 1 + (i + 1 in features)) for i in features if i - 1 not in features]
    media = []
    while unread:
        grid = unread.pop(0)
        count = grid[0] * (1 + grid[3] * grid[4])
        spans, runs = tuple(runs[:count]), runs[count:]
        media.append(Media("image", np.zeros(1, np.uint8), grid, spans, (1, 1)))
    nothing: Any = None
    processor = MiniCPMV4_7Processor(nothing, None, nothing, nothing, 1, MARKS)
    return Prompt(ids, tuple(media), unbroken=processor.unbroken(ids, media))


def test_any_allowed_prefix_leaves_the_positions_as_they_are() -> None:
    sliced = [*WHOLE, *ROW, NEWLINE, *ROW]
    tokens = [WORD, *sliced, NEWLINE, WORD, WORD, *WHOLE, NEWLINE, *WHOLE, WORD, *WHOLE, WORD]
    whole = prompt(tokens, [SLICED_GRID, WHOLE_GRID, WHOLE_GRID, WHOLE_GRID])
    positions, delta = canvas_positions(whole, 4)
    cuts = [length for length in range(len(tokens)) if cut_back(length, whole) == length]
    assert [length for length in cuts if tokens[length - 1] not in MARKS | {FEATURE}]
    assert not any(start < cut < end for cut in cuts for start, end in whole.unbroken)
    for cut in cuts:
        before, ahead = canvas_positions(whole.before(cut), 4)
        after, further = canvas_positions(whole.after(cut), 4)
        assert np.array_equal(np.concatenate([before, after + cut + ahead], axis=1), positions)
        assert ahead + further == delta


def test_pictures_with_marks_between_them_are_one_span() -> None:
    apart = prompt([WORD, WORD, *WHOLE, NEWLINE, WORD, *WHOLE], [WHOLE_GRID] * 2)
    assert apart.unbroken == ((1, 7), (7, 12))
    assert prompt([WORD, WORD, *WHOLE, NEWLINE, *WHOLE], [WHOLE_GRID] * 2).unbroken == ((1, 11),)
