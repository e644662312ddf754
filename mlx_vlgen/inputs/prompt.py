"""What the processor hands to a model: token ids with every placeholder expanded, and the media they stand for."""

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from .kinds import KINDS, Kind

Span = tuple[int, int]
"""Half-open range (start, end) of positions in `Prompt.tokens`."""


@dataclass(frozen=True)
class MediaInputs:
    """The media of one request as they were given, and how to read them.

    images: pictures, each anything `load_image` takes; videos: each anything `load_video` takes; audios: each anything
    `load_audio` takes.
    resize_shape: (height, width) to resize every picture to before processing; default None, no resize.
    min_pixels, max_pixels: bounds of a processed picture's area in pixels; default None, the processor's.
    video_fps: rate to sample a video file at, or the rate of raw frames (default 2.0). num_frames: exactly so many
    frames instead. max_frames: at most so many.
    use_audio_in_video: whether to hear videos, too: the sound of their files, or `audios` that no placeholder stands
    for, one a video, in order.
    """

    images: Sequence[Any] = ()
    videos: Sequence[Any] = ()
    audios: Sequence[Any] = ()
    resize_shape: tuple[int, int] | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    video_fps: float | None = None
    num_frames: int | None = None
    max_frames: int | None = None
    use_audio_in_video: bool = False

    @property
    def sources(self) -> dict[Kind, list[Any]]:
        """The media of each kind, in order."""
        return {kind: list(getattr(self, record.plural)) for kind, record in KINDS.items()}

    def with_sources(self, sources: Mapping[Kind, Sequence[Any]]) -> "MediaInputs":
        """The same settings for these media, and no others."""
        media: dict[str, Any] = {record.plural: tuple(sources.get(kind, ())) for kind, record in KINDS.items()}
        return replace(self, **media)


@dataclass(frozen=True)
class Normalization:
    """What a vision tower takes of a level from 0 to 255: (level / 255 - mean) / std, by channel."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def coefficients(self) -> tuple[np.ndarray, np.ndarray]:
        """(3,) float32 each: level * the first - the second."""
        std = np.asarray(self.std)
        return (1 / (255 * std)).astype(np.float32), (np.asarray(self.mean) / std).astype(np.float32)

    def __call__(self, levels: np.ndarray) -> np.ndarray:
        """uint8 (..., 3) -> float32."""
        scale, shift = self.coefficients
        return levels.astype(np.float32) * scale - shift


@dataclass(frozen=True, eq=False)
class Media:
    """One processed picture, video or audio clip.

    pixels: uint8 levels, channels last, which `Model.encode` normalises on the device; or float32, `pixel_values` as
    transformers' processors return them, which it takes as they are; empty once it is encoded. For Qwen (patches,
    frames * size * size * 3), one frame for a picture, which transformers writes twice; for families that cut a
    picture into tiles (tiles, height, width, 3), in `pixel_values` (tiles, 3, height, width). Of sound float32 (frames,
    bands), what its tower takes, without padding but for the frames after its end that features of its end depend on.
    grid: its shape as the family counts it; for Qwen (frames, rows, columns) in patches; of sound (frames,), those that
    are its own, where pixels may have more. Media of one form are encoded as one
    batch, or, by some families, of one layout.
    spans: where its features go, in order, in `Prompt.tokens`; a Qwen3-VL video has one span per pair of frames.
    size: the original (height, width) in pixels; (0, 0) of sound.
    seconds: how long one step of a video's grid in time takes, which some families' positions tell; 0 for a picture,
    and in other families.
    normalization: of its levels.
    variant: which of several features it has, in a family where media beside it decide that.
    extent: of a video that is heard, all tokens whose positions depend on each other: its features, those of its sound,
    and the two on either side. None: those of its spans.
    """

    kind: Kind
    pixels: np.ndarray
    grid: tuple[int, ...]
    spans: tuple[Span, ...]
    size: tuple[int, int]
    seconds: float = 0.0
    normalization: Normalization | None = None
    variant: int = 0
    extent: Span | None = None

    @property
    def bounds(self) -> Span:
        """What no beginning of a prompt may cut."""
        return self.extent or (self.spans[0][0], self.spans[-1][1])

    @property
    def form(self) -> tuple[Any, ...]:
        """What media of equal shape have in common, which are encoded as one batch; forms can be sorted."""
        return self.kind, self.grid, self.pixels.shape, self.pixels.dtype.str, repr(self.normalization), self.variant

    @property
    def layout(self) -> tuple[Any, ...]:
        """The same of media of any size, whose pixels may lie in one sequence."""
        return self.kind, self.pixels.shape[1:], self.pixels.dtype.str, repr(self.normalization), self.variant

    @cached_property
    def key(self) -> str:
        """Content hash: media with the same have the same features and positions, wherever they came from. Computed
        when it is first asked for, which must be before the pixels are let go; copies keep it."""
        if not self.pixels.size:
            raise ValueError("key: the pixels are gone; ask for it before they are encoded")
        digest = hashlib.sha256(repr((self.form, self.seconds)).encode())
        digest.update(np.ascontiguousarray(self.pixels).data)
        return digest.hexdigest()

    @property
    def identity(self) -> Hashable:
        """Equal for media that are known to be equal: by their key, where it was asked for."""
        return self.__dict__.get("key", self)

    def moved(self, distance: int) -> "Media":
        """The same, so many tokens later."""
        spans = tuple((start + distance, end + distance) for start, end in self.spans)
        extent = self.extent and (self.extent[0] + distance, self.extent[1] + distance)
        return self.replace(spans=spans, extent=extent)

    def replace(self, **changes: Any) -> "Media":
        """A copy with other pixels of the same content, or elsewhere in a prompt."""
        copy = replace(self, **changes)
        if "key" in self.__dict__:
            copy.__dict__["key"] = self.key
        return copy


@dataclass(frozen=True, eq=False)
class Prompt:
    """One request's input.

    tokens: (L,) int32, placeholders expanded to one id per feature. media: in order of appearance.
    two_way: spans whose tokens all attend to each other, or to pictures that come after them; a prefill chunk never
    cuts one. unbroken: other spans that a reused prefix never cuts, in which positions depend on what comes later.
    text: the formatted prompt.
    tail: the part of it that may open a thinking block: all of a formatted string, of messages what the template wrote
    after the last user text; None where there are token ids only.
    """

    tokens: np.ndarray
    media: tuple[Media, ...] = ()
    two_way: tuple[Span, ...] = ()
    unbroken: tuple[Span, ...] = ()
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
        return replace(self, media=tuple(media.replace(pixels=np.empty(0, np.uint8)) for media in self.media))

    def before(self, length: int) -> "Prompt":
        """The first so many tokens, which cut no medium and no two-way span."""
        media = tuple(media for media in self.media if media.spans[0][0] < length)
        two_way, unbroken = (
            tuple(span for span in spans if span[0] < length) for spans in (self.two_way, self.unbroken)
        )
        return Prompt(self.tokens[:length], media, two_way, unbroken)

    def after(self, length: int) -> "Prompt":
        """What comes after so many tokens, which cut no medium and no two-way span."""
        media = tuple(media.moved(-length) for media in self.media if media.spans[0][0] >= length)
        two_way, unbroken = (
            tuple((start - length, end - length) for start, end in spans if start >= length)
            for spans in (self.two_way, self.unbroken)
        )
        return Prompt(self.tokens[max(0, length) :], media, two_way, unbroken, self.text, self.tail)
