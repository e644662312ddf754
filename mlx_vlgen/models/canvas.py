"""Rotary positions of MiniCPM-V 4.7: a picture and its slices lie on one canvas, which the tokens around them frame.

Source: `get_rope_index` of transformers' MiniCPMV4_7Model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..inputs.prompt import Media, Prompt, Span


@dataclass(frozen=True)
class Frame:
    """A picture, or a frame of a video. spans: of the whole, then of its slices; grid: rows and columns of patches of
    the whole, of slices, and of patches of a slice; end: after the tokens that close it."""

    spans: Sequence[Span]
    grid: tuple[int, ...]
    end: int

    @property
    def start(self) -> int:
        """Of the token that opens it."""
        return self.spans[0][0] - 1


def frames_of(prompt: Prompt) -> Iterator[list[Frame]]:
    """Of each run of tokens that belong to pictures, `Prompt.unbroken`, its frames: one ends where the first feature of
    the next begins."""
    parts = [part for medium in prompt.media for part in _frames(medium)]
    for start, end in prompt.unbroken:
        inside = [part for part in parts if start <= part[0][0][0] < end]
        ends = [*(spans[0][0] for spans, _ in inside[1:]), end]
        yield [Frame(*part, stop) for part, stop in zip(inside, ends, strict=True)]


def _frames(medium: Media) -> Iterator[tuple[Sequence[Span], tuple[int, ...]]]:
    count, *grid = medium.grid
    parts = len(medium.spans) // count
    for start in range(0, len(medium.spans), parts):
        yield medium.spans[start : start + parts], tuple(grid)


def canvas_positions(prompt: Prompt, merge: int) -> tuple[np.ndarray, int]:
    """(3, L) int32, and how far they are ahead of plain ones after the prompt. merge: patches a side that become one
    token."""
    count = len(prompt.tokens)
    positions = np.empty((3, count), np.int32)
    after = position = 0
    for frames in frames_of(prompt):
        start = frames[0].start
        positions[:, after:start] = position + np.arange(start - after)
        position += start - after
        for frame in frames:
            position += max(_place(positions, frame, position, merge)) + 1
        after = frames[-1].end
    positions[:, after:] = position + np.arange(count - after)
    return positions, position - after


def _place(positions: np.ndarray, frame: Frame, origin: int, merge: int) -> tuple[int, int]:
    """Write a frame's positions, on a canvas that begins at `origin`; its height and width."""
    rows, columns, part_rows, part_columns = frame.grid[2:]
    whole_rows, whole_columns, part_rows, part_columns = (
        side // merge for side in (*frame.grid[:2], part_rows, part_columns)
    )
    height, width = (rows * part_rows, columns * part_columns) if rows else (whole_rows, whole_columns)
    (start, end), *slices = frame.spans
    positions[:, frame.start : frame.end] = origin
    positions[1:, frame.start] = max(origin - 1, 0)
    positions[1:, end : min(end + 1, frame.end)] = np.array([[origin + height], [origin + width]])
    spread = np.meshgrid(stretched(whole_rows, height), stretched(whole_columns, width), indexing="ij")
    positions[1:, start:end] = origin + np.stack(spread).reshape(2, -1)
    part = np.indices((part_rows, part_columns)).reshape(2, -1)
    for index, (start, end) in enumerate(slices):
        row, column = divmod(index, columns)
        corner = origin + np.array([[row * part_rows], [column * part_columns]])
        positions[1:, start - 1 : start] = corner
        positions[1:, start:end] = corner + part
        positions[1:, end : min(end + 1, frame.end)] = corner + np.array([[part_rows - 1], [part_columns - 1]])
        if column == columns - 1 and row < rows - 1:
            edge = np.array([[(row + 1) * part_rows - 1], [width]])
            positions[1:, end + 1 : slices[index + 1][0] - 1] = origin + edge
    return height, width


def stretched(count: int, length: int) -> np.ndarray:
    """(count,) whole places, evenly from 0 to `length` - 1: in float32 and from both ends, as torch's linspace has
    them, since halves are rounded."""
    step = np.float32(length - 1) / np.float32(max(count - 1, 1))
    index = np.arange(count, dtype=np.float32)
    from_end = np.float32(length - 1) - step * (count - 1 - index)
    return np.rint(np.where(index < count // 2 if count > 1 else True, step * index, from_end)).astype(np.int32)
