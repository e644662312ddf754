"""What the processor hands to a model: token ids with every placeholder expanded, and the media they stand for."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

Span = tuple[int, int]
"""Half-open range (start, end) of positions in `Prompt.tokens`."""


@dataclass(frozen=True)
class MediaInputs:
    """The media of one request as they were given, and how to read them.

    images: pictures, each anything `load_image` takes; videos: each anything `load_video` takes.
    resize_shape: (height, width) to resize every picture to before processing; default None, no resize.
    min_pixels, max_pixels: bounds of a processed picture's area in pixels; default None, the processor's.
    video_fps: rate to sample a video file at, or the rate of raw frames (default 2.0). num_frames: exactly so many
    frames instead. max_frames: at most so many.
    """

    images: Sequence[Any] = ()
    videos: Sequence[Any] = ()
    resize_shape: tuple[int, int] | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    video_fps: float | None = None
    num_frames: int | None = None
    max_frames: int | None = None


@dataclass(frozen=True, eq=False)
class Media:
    """One processed picture or video.

    pixels: input of the family's tower, float32; for Qwen (patches, channels * frames * size * size), for families
    that cut a picture into tiles (tiles, 3, height, width); empty once it is encoded. grid: its shape as the
    family counts it; for Qwen (frames, rows, columns) in patches. Equal shapes and grids can be encoded as one batch.
    spans: where its features go, in order, in `Prompt.tokens`; a Qwen3-VL video has one span per pair of frames. size:
    the original (height, width) in pixels. seconds: how long one step of a video's grid in time takes, which some
    families' positions tell; 0 for a picture, and in other families.
    """

    kind: Literal["image", "video"]
    pixels: np.ndarray
    grid: tuple[int, ...]
    spans: tuple[Span, ...]
    size: tuple[int, int]
    seconds: float = 0.0

    @cached_property
    def key(self) -> str:
        """Content hash: equal pixels, grid and pace have equal features and positions, wherever they came from."""
        digest = hashlib.sha256(repr((self.kind, self.grid, self.seconds, self.pixels.shape)).encode())
        digest.update(np.ascontiguousarray(self.pixels).data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Prompt:
    """One request's input.

    tokens: (L,) int32, placeholders expanded to one id per feature. media: in order of appearance.
    two_way: spans whose tokens all attend to each other; a prefill chunk never cuts one. text: the formatted prompt.
    tail: the part of it that may open a thinking block: all of a formatted string, of messages what the template wrote
    after the last user text; None where there are token ids only.
    """

    tokens: np.ndarray
    media: tuple[Media, ...] = ()
    two_way: tuple[Span, ...] = ()
    text: str = field(default="", repr=False)
    tail: str | None = field(default=None, repr=False)

    @cached_property
    def text_tokens(self) -> list[int]:
        """The tokens that stand for no feature of any media."""
        keep = np.ones(len(self.tokens), dtype=bool)
        for media in self.media:
            for start, end in media.spans:
                keep[start:end] = False
        return [int(token) for token in self.tokens[keep]]

    def without_pixels(self) -> "Prompt":
        """The same with its media encoded: a row lives long after, and its pixels take more than its cache."""
        return replace(self, media=tuple(replace(media, pixels=np.empty(0, np.float32)) for media in self.media))

    def after(self, length: int) -> "Prompt":
        """What comes after so many tokens. Its media must, too."""
        media = tuple(
            replace(media, spans=tuple((start - length, end - length) for start, end in media.spans))
            for media in self.media
        )
        two_way = tuple((start - length, end - length) for start, end in self.two_way if start >= length)
        return Prompt(self.tokens[max(0, length) :], media, two_way, self.text, self.tail)
