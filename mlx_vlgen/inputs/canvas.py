"""Rotary positions of MiniCPM-V 4.7: a picture and its slices lie on one canvas, which the tokens around them frame.

Source: `get_rope_index` of transformers' MiniCPMV4_7Model.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ..errors import LoadError
from .prompt import Media, Span


@dataclass(frozen=True)
class Frame:
    """A picture, or a frame of a video. spans: of the whole, then of its slices; grid: `MiniCPMVImageSettings.grid`;
    end: after the tokens that close it."""

    spans: tuple[Span, ...]
    grid: tuple[int, ...]
    end: int

    @property
    def start(self) -> int:
        """Of the token that opens it."""
        return self.spans[0][0] - 1


Group = list[Frame]
"""Frames with nothing but marks between them."""


@dataclass(frozen=True)
class Canvas:
    """marks: ids of the tokens that open and close pictures and slices, and end a row of slices; merge: patches a side
    that become one token."""

    marks: Collection[int]
    merge: int

    @classmethod
    def read(cls, config: Mapping[str, Any], merge: int) -> Self:
        names = ("image_start_id", "image_end_id", "slice_start_id", "slice_end_id", "newline_id")
        if missing := [name for name in names if config.get(name) is None]:
            raise LoadError(
                f"This checkpoint's config.json has no {', '.join(missing)}, by which pictures are laid out."
            )
        return cls(frozenset(config[name] for name in names), merge)

    def groups(self, tokens: np.ndarray, media: Sequence[Media]) -> list[Group]:
        """Of a prompt, in order."""
        groups: list[Group] = []
        before = 0
        for spans, grid in frames(media):
            end = spans[-1][1]
            while end < len(tokens) and tokens[end] in self.marks:
                end += 1
            frame = Frame(spans, grid, end)
            if groups and all(token in self.marks for token in tokens[before : frame.start]):
                groups[-1].append(frame)
            else:
                groups.append([frame])
            before = spans[-1][1]
        return groups

    def positions(self, tokens: np.ndarray, media: Sequence[Media]) -> tuple[np.ndarray, int]:
        """(3, L) int32 of a prompt, and how far they are ahead of plain ones after it."""
        positions = np.empty((3, len(tokens)), np.int32)
        at = position = 0

        def text(stop: int) -> None:
            """Plain positions up to a token."""
            nonlocal at, position
            positions[:, at:stop] = position + np.arange(stop - at)
            position, at = position + stop - at, stop

        for group in self.groups(tokens, media):
            text(group[0].start)
            for frame in group:
                if frame.start > at:
                    text(frame.start)
                    position += 1
                height, width = self._place(positions, frame, position)
                position, at = position + max(height, width) + 1, frame.end
        text(len(tokens))
        return positions, int(positions.max(initial=-1)) + 1 - len(tokens)

    def _place(self, positions: np.ndarray, frame: Frame, origin: int) -> tuple[int, int]:
        """Write a frame's positions, on a canvas that begins at `origin`; its height and width."""
        rows, columns, part_rows, part_columns = frame.grid[2:]
        whole_rows, whole_columns, part_rows, part_columns = (
            side // self.merge for side in (*frame.grid[:2], part_rows, part_columns)
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


def frames(media: Sequence[Media]) -> Iterator[tuple[tuple[Span, ...], tuple[int, ...]]]:
    """The spans of each picture or frame, and its grid, in order."""
    for medium in media:
        count, *grid = medium.grid
        parts = len(medium.spans) // count
        for start in range(0, len(medium.spans), parts):
            yield medium.spans[start : start + parts], tuple(grid)


def stretched(count: int, length: int) -> np.ndarray:
    """(count,) whole places, evenly from 0 to `length` - 1: in float32 and from both ends, as torch's linspace has
    them, since halves are rounded."""
    step = np.float32(length - 1) / np.float32(max(count - 1, 1))
    index = np.arange(count, dtype=np.float32)
    from_end = np.float32(length - 1) - step * (count - 1 - index)
    return np.rint(np.where(index < count // 2 if count > 1 else True, step * index, from_end)).astype(np.int32)
