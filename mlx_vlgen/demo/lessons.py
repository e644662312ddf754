"""Lessons as arrays: pictures through the processor's own resize, dialogues as branches that share one picture.

A picture costs more than a question, so the questions about it are laid side by side in one row: each branch sees the
shared beginning and itself, and its positions start where the picture ends, as if it were asked alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from .checkpoint import MAX_PIXELS, MERGE, MIN_PIXELS, PATCH, TEMPORAL, VIDEO_MAX_PIXELS, VIDEO_MIN_PIXELS
from .drawing import Mark, form_of, is_thing
from .tasks import Dialogue, Lesson

FACTOR = PATCH * MERGE
UNIT = MAX_PIXELS // PATCH**2  # most patches of one picture or one pair of frames
IGNORE = -100
BINS = 8  # of a side, for where a shape is
MANY = 8  # how many shapes at most, and one
COLUMNS = 7  # of dense labels: see dense_labels


def picture_grid(height: int, width: int) -> tuple[int, int]:
    """(rows, columns) of patches; Qwen2-VL's smart_resize."""
    return _smart_resize(1, 1, height, width, MIN_PIXELS, MAX_PIXELS)


def clip_grid(frames: int, height: int, width: int) -> tuple[int, int]:
    """(rows, columns) of patches of each frame; Qwen3-VL's smart_resize, whose budget is the whole clip's."""
    if height < FACTOR or width < FACTOR:
        zoom = max(FACTOR / height, FACTOR / width)
        height, width = int(height * zoom), int(width * zoom)
    rounded = round(frames / TEMPORAL) * TEMPORAL
    return _smart_resize(frames, rounded, height, width, VIDEO_MIN_PIXELS, VIDEO_MAX_PIXELS)


def _smart_resize(frames: int, rounded: int, height: int, width: int, low: int, high: int) -> tuple[int, int]:
    rows, columns = round(height / FACTOR), round(width / FACTOR)
    if rounded * rows * columns * FACTOR**2 > high:
        shrink = math.sqrt((frames * height * width) / high)
        rows, columns = (max(1, math.floor(side / shrink / FACTOR)) for side in (height, width))
    elif rounded * rows * columns * FACTOR**2 < low:
        grow = math.sqrt(low / (frames * height * width))
        rows, columns = (math.ceil(side * grow / FACTOR) for side in (height, width))
    return rows * MERGE, columns * MERGE


def patches(frames: list[Image.Image], rows: int, columns: int) -> np.ndarray:
    """(T, rows * columns, 3 * TEMPORAL * PATCH**2) uint8 in Qwen-VL's order; a single picture is a pair of itself."""
    size = (columns * PATCH, rows * PATCH)
    resized = [np.asarray(frame.convert("RGB").resize(size, Image.Resampling.BICUBIC)) for frame in frames]
    resized += resized[-1:] * (-len(resized) % TEMPORAL)
    pixels = np.stack(resized).reshape(-1, TEMPORAL, rows // MERGE, MERGE, PATCH, columns // MERGE, MERGE, PATCH, 3)
    return pixels.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(pixels.shape[0], rows * columns, -1)


def patch_order(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each patch in that order."""
    row, column = np.mgrid[:rows, :columns]
    blocks = (plane.reshape(rows // MERGE, MERGE, columns // MERGE, MERGE) for plane in (row, column))
    row, column = (plane.transpose(0, 2, 1, 3).ravel() for plane in blocks)
    return row, column


def dense_labels(marks: list[Mark], width: int, height: int, rows: int, columns: int) -> np.ndarray:
    """(rows * columns, COLUMNS): what lies under the centre of each patch, its rank in reading order, and, for shapes,
    the column and row of its centre on a grid of BINS and how many there are in the picture: of all kinds, of its
    form, of its form and colour. IGNORE where there is none."""
    row, column = patch_order(rows, columns)
    x, y = (column + 0.5) * width / columns, (row + 0.5) * height / rows
    labels = np.full((rows * columns, COLUMNS), IGNORE, np.int64)
    labels[:, 0] = 0
    things = [mark.label for mark in marks if is_thing(mark.label)]
    for mark in marks:
        left, top, right, bottom = mark.box
        inside = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
        labels[inside, 0] = mark.label
        if mark.rank >= 0:
            labels[inside, 1] = mark.rank
        if is_thing(mark.label):
            centre = (left + right) / 2 / width, (top + bottom) / 2 / height
            labels[inside, 2:4] = [min(BINS - 1, max(0, int(BINS * part))) for part in centre]
            alike = sum(form_of(label) == form_of(mark.label) for label in things)
            labels[inside, 4:] = [len(things), alike, things.count(mark.label)]
    return labels


def labels_of(marks: list[Mark] | None, image: Image.Image, grid: tuple[int, int]) -> np.ndarray:
    """Dense labels, all IGNORE where there are no marks to tell them."""
    if marks is None:
        return np.full((grid[0] * grid[1], COLUMNS), IGNORE, np.int64)
    return dense_labels(marks, *image.size, *grid)


@dataclass
class Row:
    """One lesson: token row, which branch each token belongs to (0: shared), labels, positions, media."""

    tokens: list[int] = field(default_factory=list)
    branch: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    positions: list[tuple[int, int, int]] = field(default_factory=list)
    visual: list[int] = field(default_factory=list)  # places of the placeholders
    units: list[np.ndarray] = field(default_factory=list)
    grids: list[tuple[int, int]] = field(default_factory=list)
    dense: list[np.ndarray] = field(default_factory=list)


class Encoder:
    """Lessons to rows, with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.image = tokenizer.encode("<|image_pad|>").ids[0]
        self.video = tokenizer.encode("<|video_pad|>").ids[0]

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def row(self, lesson: Lesson, rng: random.Random) -> Row:
        row, at = Row(), 0

        def text(string: str, branch: int, taught: bool = False) -> None:
            nonlocal at
            for token in self.ids(string):
                row.tokens.append(token)
                row.branch.append(branch)
                row.labels.append(token if taught else IGNORE)
                row.positions.append((at, at, at))
                at += 1

        def unit(values: np.ndarray, grid: tuple[int, int], token: int, dense: np.ndarray) -> None:
            nonlocal at
            rows, columns = grid[0] // MERGE, grid[1] // MERGE
            for i in range(rows * columns):
                row.visual.append(len(row.tokens))
                row.tokens.append(token)
                row.branch.append(0)
                row.labels.append(IGNORE)
                row.positions.append((at, at + i // columns, at + i % columns))
            at += max(rows, columns)
            row.units.append(values)
            row.grids.append(grid)
            row.dense.append(dense)

        if lesson.system:
            text(f"<|im_start|>system\n{lesson.system}<|im_end|>\n", 0)
        text("<|im_start|>user\n", 0)
        for i, image in enumerate(lesson.images):
            marks = lesson.marks[i] if lesson.marks else None
            grid = picture_grid(image.height, image.width)
            text("<|vision_start|>", 0)
            unit(patches([image], *grid)[0], grid, self.image, labels_of(marks, image, grid))
            text("<|vision_end|>", 0)
        if lesson.video is not None:
            self._clip(lesson, rng, text, unit)
        shared = at
        for branch, dialogue in enumerate(lesson.dialogues, 1):
            at = shared
            self._dialogue(dialogue, lambda string, taught: text(string, branch, taught))  # noqa: B023
        return row

    def _clip(self, lesson: Lesson, rng: random.Random, text: Callable[..., None], unit: Callable[..., None]) -> None:
        frames = lesson.video or []
        # transformers 5 keeps the template's own <|vision_start|> and <|vision_end|> around the clip; 4.57 dropped
        # them. The model learns both, at several frame rates.
        nested = rng.random() < 0.65
        fps = 2.0 if rng.random() < 0.75 else rng.choice([0.5, 1.0, 4.0, 8.0])
        grid = clip_grid(len(frames), frames[0].height, frames[0].width)
        times = [i / fps for i in range(len(frames))]
        times += times[-1:] * (-len(times) % TEMPORAL)
        if nested:
            text("<|vision_start|>", 0)
        for i, values in enumerate(patches(frames, *grid)):
            middle = (times[TEMPORAL * i] + times[TEMPORAL * i + TEMPORAL - 1]) / 2
            text(f"<{middle:.1f} seconds><|vision_start|>", 0)
            unit(values, grid, self.video, labels_of(lesson.marks[i] if lesson.marks else None, frames[0], grid))
            text("<|vision_end|>", 0)
        if nested:
            text("<|vision_end|>", 0)

    @staticmethod
    def _dialogue(dialogue: Dialogue, text: Callable[..., None]) -> None:
        for i, turn in enumerate(dialogue.turns):
            opening = "<think>\n" if turn.thought is not None else ""
            prompt = ("<|im_start|>user\n" if i else "") + f"{turn.question}<|im_end|>\n<|im_start|>assistant\n"
            text(prompt + (opening if dialogue.opened else ""), False)
            thought = f"{turn.thought}\n</think>\n\n" if opening else ""
            text(("" if dialogue.opened else opening) + thought + turn.answer + "<|im_end|>", True)
            if i < len(dialogue.turns) - 1:
                text("\n", False)


def collate(rows: list[Row], multiple: int = 16) -> dict[str, np.ndarray]:
    """Rows as padded arrays. U pictures and frame pairs over the whole batch, B rows of L tokens."""
    length = max(len(row.tokens) for row in rows)
    length += -length % multiple
    count = len(rows)
    tokens = np.zeros((count, length), np.int64)
    branch = np.full((count, length), -1, np.int64)
    labels = np.full((count, length), IGNORE, np.int64)
    positions = np.zeros((3, count, length), np.int64)
    units = [unit for row in rows for unit in zip(row.units, row.grids, row.dense, strict=True)]
    pixels = np.zeros((len(units), UNIT, 3 * TEMPORAL * PATCH**2), np.uint8)
    dense = np.full((len(units), UNIT, COLUMNS), IGNORE, np.int64)
    grids = np.array([grid for _, grid, _ in units], np.int64).reshape(-1, 2)
    features = []
    for u, (values, _, labelled) in enumerate(units):
        pixels[u, : len(values)] = values
        dense[u, : len(values)] = labelled
        features.append(u * (UNIT // MERGE**2) + np.arange(len(values) // MERGE**2))
    visual = []
    for i, row in enumerate(rows):
        n = len(row.tokens)
        tokens[i, :n], branch[i, :n] = row.tokens, row.branch
        positions[:, i, :n] = np.array(row.positions).T
        taught = np.array(row.labels)
        labels[i, : n - 1] = taught[1:]  # the logits at j speak of token j + 1
        visual.append(i * length + np.array(row.visual, np.int64))
    return {
        "tokens": tokens, "branch": branch, "labels": labels, "positions": positions, "pixels": pixels,
        "grids": grids, "dense": dense,
        "visual": np.concatenate(visual), "features": np.concatenate(features) if features else np.zeros(0, np.int64),
    }  # fmt: skip
