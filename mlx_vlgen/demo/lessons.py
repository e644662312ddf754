"""Lessons as arrays: pictures resized and cut into patches, dialogues as branches that share one picture.

A picture costs more than a question, so all questions about it stand in one row. Each branch attends to the shared
beginning and to itself, and its positions start where the picture ends, as if it were the only one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from .checkpoint import MAX_PIXELS, MERGE, MIN_PIXELS, PATCH, TEMPORAL, VIDEO_MAX_PIXELS, VIDEO_MIN_PIXELS
from .drawing import BoxLabel, form_of, is_thing
from .tasks import Dialogue, Lesson

FACTOR = PATCH * MERGE
MAX_PATCHES = MAX_PIXELS // PATCH**2  # of one picture or one pair of frames
IGNORE = -100
BINS = 8  # of a side, for the place of a shape
MAX_COUNT = 8  # classes of a count of shapes, 0 to 7
LABEL_COLUMNS = 7  # see dense_labels


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


def dense_labels(box_labels: list[BoxLabel], width: int, height: int, rows: int, columns: int) -> np.ndarray:
    """(rows * columns, LABEL_COLUMNS), IGNORE where a column does not apply. Of the object under the centre of each
    patch: class, 0 for the background; rank in reading order; for shapes the column and row of the centre on a grid of
    BINS, and how many shapes the picture has: of all kinds, of its form, of its form and colour."""
    row, column = patch_order(rows, columns)
    x, y = (column + 0.5) * width / columns, (row + 0.5) * height / rows
    labels = np.full((rows * columns, LABEL_COLUMNS), IGNORE, np.int64)
    labels[:, 0] = 0
    things = [box.label for box in box_labels if is_thing(box.label)]
    for box in box_labels:
        left, top, right, bottom = box.box
        inside = (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
        labels[inside, 0] = box.label
        if box.rank >= 0:
            labels[inside, 1] = box.rank
        if is_thing(box.label):
            centre = (left + right) / 2 / width, (top + bottom) / 2 / height
            labels[inside, 2:4] = [min(BINS - 1, max(0, int(BINS * part))) for part in centre]
            alike = sum(form_of(label) == form_of(box.label) for label in things)
            labels[inside, 4:] = [len(things), alike, things.count(box.label)]
    return labels


def labels_or_ignore(lesson: Lesson, index: int, image: Image.Image, grid: tuple[int, int]) -> np.ndarray:
    """(rows * columns, LABEL_COLUMNS) dense labels of a lesson's picture or pair of frames; IGNORE without boxes."""
    if not lesson.box_labels:
        return np.full((grid[0] * grid[1], LABEL_COLUMNS), IGNORE, np.int64)
    return dense_labels(lesson.box_labels[index], *image.size, *grid)


@dataclass
class Row:
    """One lesson as a sequence of L tokens, N of which stand for features."""

    tokens: list[int] = field(default_factory=list)  # (L,)
    branch: list[int] = field(default_factory=list)  # (L,): the dialogue of each token, 0 for what all of them share
    labels: list[int] = field(default_factory=list)  # (L,): the token itself where it counts in the loss, or IGNORE
    positions: list[tuple[int, int, int]] = field(default_factory=list)  # (L, 3): time, row and column for M-RoPE
    feature_positions: list[int] = field(default_factory=list)  # (N,): indices of the tokens that stand for features
    images: list[np.ndarray] = field(default_factory=list)  # patches of each picture or pair of frames
    grids: list[tuple[int, int]] = field(default_factory=list)  # rows and columns of those patches
    dense: list[np.ndarray] = field(default_factory=list)  # dense labels of those patches
    position: int = 0  # of the next token

    def add_text(self, ids: list[int], branch: int, in_loss: bool) -> None:
        for token in ids:
            self.tokens.append(token)
            self.branch.append(branch)
            self.labels.append(token if in_loss else IGNORE)
            self.positions.append((self.position, self.position, self.position))
            self.position += 1

    def add_image(self, pixels: np.ndarray, grid: tuple[int, int], token: int, dense: np.ndarray) -> None:
        """One token for each MERGE x MERGE block of patches. All have one position in time; after them it goes on at
        the largest of their rows and columns."""
        rows, columns = grid[0] // MERGE, grid[1] // MERGE
        for i in range(rows * columns):
            self.feature_positions.append(len(self.tokens))
            self.tokens.append(token)
            self.branch.append(0)
            self.labels.append(IGNORE)
            self.positions.append((self.position, self.position + i // columns, self.position + i % columns))
        self.position += max(rows, columns)
        self.images.append(pixels)
        self.grids.append(grid)
        self.dense.append(dense)


class Encoder:
    """Lessons to rows, with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.image_token = tokenizer.encode("<|image_pad|>").ids[0]
        self.video_token = tokenizer.encode("<|video_pad|>").ids[0]

    def row(self, lesson: Lesson, rng: random.Random) -> Row:
        """The prompt's beginning and the media once, then each dialogue as a branch that starts where they end."""
        row = Row()
        if lesson.system:
            self._add_text(row, f"<|im_start|>system\n{lesson.system}<|im_end|>\n")
        self._add_text(row, "<|im_start|>user\n")
        for i, image in enumerate(lesson.images):
            grid = picture_grid(image.height, image.width)
            dense = labels_or_ignore(lesson, i, image, grid)
            self._add_text(row, "<|vision_start|>")
            row.add_image(patches([image], *grid)[0], grid, self.image_token, dense)
            self._add_text(row, "<|vision_end|>")
        if lesson.video is not None:
            self._add_clip(row, lesson, lesson.video, rng)
        shared = row.position
        for branch, dialogue in enumerate(lesson.dialogues, 1):
            row.position = shared
            self._add_dialogue(row, dialogue, branch)
        return row

    def _add_text(self, row: Row, text: str, branch: int = 0, in_loss: bool = False) -> None:
        row.add_text(self.tokenizer.encode(text, add_special_tokens=False).ids, branch, in_loss)

    def _add_clip(self, row: Row, lesson: Lesson, frames: list[Image.Image], rng: random.Random) -> None:
        # transformers 5 leaves the template's <|vision_start|> and <|vision_end|> around the clip; 4.57 dropped them.
        # The model learns both, at several frame rates.
        nested = rng.random() < 0.65
        fps = 2.0 if rng.random() < 0.75 else rng.choice([0.5, 1.0, 4.0, 8.0])
        grid = clip_grid(len(frames), frames[0].height, frames[0].width)
        times = [i / fps for i in range(len(frames))]
        times += times[-1:] * (-len(times) % TEMPORAL)
        if nested:
            self._add_text(row, "<|vision_start|>")
        for i, pixels in enumerate(patches(frames, *grid)):
            middle = (times[TEMPORAL * i] + times[TEMPORAL * i + TEMPORAL - 1]) / 2
            self._add_text(row, f"<{middle:.1f} seconds><|vision_start|>")
            row.add_image(pixels, grid, self.video_token, labels_or_ignore(lesson, i, frames[0], grid))
            self._add_text(row, "<|vision_end|>")
        if nested:
            self._add_text(row, "<|vision_end|>")

    def _add_dialogue(self, row: Row, dialogue: Dialogue, branch: int) -> None:
        """Questions without loss, thoughts and answers with it: the model learns to answer, not to ask."""
        for i, turn in enumerate(dialogue.turns):
            opening = "<think>\n" if turn.thought is not None else ""
            prompt = ("<|im_start|>user\n" if i else "") + f"{turn.question}<|im_end|>\n<|im_start|>assistant\n"
            self._add_text(row, prompt + (opening if dialogue.thinking_opened else ""), branch)
            thought = f"{turn.thought}\n</think>\n\n" if opening else ""
            answer = ("" if dialogue.thinking_opened else opening) + thought + turn.answer + "<|im_end|>"
            self._add_text(row, answer, branch, in_loss=True)
            if i < len(dialogue.turns) - 1:
                self._add_text(row, "\n", branch)


def collate_tokens(rows: Sequence[Row], multiple: int) -> dict[str, np.ndarray]:
    """B rows, padded to L tokens.

    tokens, branch, labels: (B, L) int64; labels are those of the next token
    positions: (3, B, L) int64
    feature_positions: (N,) int64, indices of the tokens that stand for features in the flattened (B * L) tokens
    """
    length = max(len(row.tokens) for row in rows)
    length += -length % multiple
    count = len(rows)
    tokens = np.zeros((count, length), np.int64)
    branch = np.full((count, length), -1, np.int64)
    labels = np.full((count, length), IGNORE, np.int64)
    positions = np.zeros((3, count, length), np.int64)
    feature_positions: list[np.ndarray] = []
    for i, row in enumerate(rows):
        n = len(row.tokens)
        tokens[i, :n], branch[i, :n] = row.tokens, row.branch
        positions[:, i, :n] = np.array(row.positions).T
        labels[i, : n - 1] = row.labels[1:]  # the logits at j predict token j + 1
        feature_positions.append(i * length + np.array(row.feature_positions, np.int64))
    return {
        "tokens": tokens, "branch": branch, "labels": labels, "positions": positions,
        "feature_positions": np.concatenate(feature_positions),
    }  # fmt: skip


def collate(rows: list[Row], multiple: int = 16) -> dict[str, np.ndarray]:
    """A batch: `collate_tokens`, and the U pictures and pairs of frames of all rows.

    pixels: (U, MAX_PATCHES, values of a patch) uint8
    grids: (U, 2) int64, rows and columns of patches
    dense: (U, MAX_PATCHES, LABEL_COLUMNS) int64
    features: (N,) int64, indices of the features in the flattened (U * MAX_PATCHES / MERGE**2) features
    """
    images = [image for row in rows for image in zip(row.images, row.grids, row.dense, strict=True)]
    pixels = np.zeros((len(images), MAX_PATCHES, 3 * TEMPORAL * PATCH**2), np.uint8)
    dense = np.full((len(images), MAX_PATCHES, LABEL_COLUMNS), IGNORE, np.int64)
    grids = np.array([grid for _, grid, _ in images], np.int64).reshape(-1, 2)
    features = [np.zeros(0, np.int64)]
    for i, (image_pixels, _, image_labels) in enumerate(images):
        pixels[i, : len(image_pixels)] = image_pixels
        dense[i, : len(image_labels)] = image_labels
        features.append(i * (MAX_PATCHES // MERGE**2) + np.arange(len(image_pixels) // MERGE**2))
    arrays: dict[str, np.ndarray] = {
        "pixels": pixels,
        "grids": grids,
        "dense": dense,
        "features": np.concatenate(features),
    }
    return collate_tokens(rows, multiple) | arrays
